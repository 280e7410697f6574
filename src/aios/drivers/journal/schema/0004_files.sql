-- Storage: volumes of files with all their versions. A file is a list of chunks, each kept once.

CREATE TABLE volumes (
    id      INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice
    owner   TEXT    NOT NULL UNIQUE,   -- pid:7, program:ann/travel, user:ann
    user    TEXT    NOT NULL,          -- whose reserve its quota is taken from
    stamp   INTEGER NOT NULL,          -- counts all changes, versions or not
    version INTEGER NOT NULL,          -- counts its commits
    bytes   INTEGER NOT NULL,          -- of its chunks, before compression
    quota   INTEGER                    -- none: as configured
) STRICT;
CREATE INDEX volumes_of ON volumes (user);

CREATE TABLE chunks (
    id     INTEGER PRIMARY KEY,
    hash   BLOB    NOT NULL UNIQUE,    -- BLAKE3, 32 bytes
    bytes  INTEGER NOT NULL,
    packed INTEGER NOT NULL,           -- 1: body is a zstd frame
    body   BLOB    NOT NULL
) STRICT;

CREATE TABLE contents (
    id    INTEGER PRIMARY KEY,
    hash  BLOB    NOT NULL UNIQUE,     -- BLAKE3 of the hashes of its chunks
    bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE content_chunks (
    content INTEGER NOT NULL,
    start   INTEGER NOT NULL,          -- in the content, in bytes
    chunk   INTEGER NOT NULL,
    PRIMARY KEY (content, start)
) STRICT, WITHOUT ROWID;
CREATE INDEX content_chunks_of ON content_chunks (chunk);

-- What a volume holds, which is what counts against its quota. A chunk in none of them may go.
CREATE TABLE volume_chunks (
    volume INTEGER NOT NULL,
    chunk  INTEGER NOT NULL,
    PRIMARY KEY (volume, chunk)
) STRICT, WITHOUT ROWID;
CREATE INDEX volume_chunks_of ON volume_chunks (chunk);

CREATE TABLE commits (
    volume  INTEGER NOT NULL,
    version INTEGER NOT NULL,
    writer  INTEGER NOT NULL,          -- a pid
    author  TEXT    NOT NULL,          -- pid:7, user:ann
    call    INTEGER NOT NULL,          -- its number
    at      REAL    NOT NULL,
    message TEXT    NOT NULL,
    PRIMARY KEY (volume, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX commits_written ON commits (writer, call);

-- What a commit changed. content 0: uncovered, as if it had never been written; none: deleted.
CREATE TABLE entries (
    volume  INTEGER NOT NULL,
    path    TEXT    NOT NULL,
    version INTEGER NOT NULL,
    content INTEGER,
    PRIMARY KEY (volume, path, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX entries_since ON entries (volume, version);
CREATE INDEX entries_with ON entries (content);

-- The newest entry of each path.
CREATE TABLE heads (
    volume  INTEGER NOT NULL,
    path    TEXT    NOT NULL,
    version INTEGER NOT NULL,
    content INTEGER,
    PRIMARY KEY (volume, path)
) STRICT, WITHOUT ROWID;

-- What processes have staged, in order. Committed, it stays for a rollback of the process.
CREATE TABLE staged (
    volume    INTEGER NOT NULL,
    writer    INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    born      INTEGER NOT NULL,        -- the number of the call that staged it
    died      INTEGER,                 -- of the call that committed it
    kind      TEXT    NOT NULL CHECK (kind IN ('write', 'append', 'delete', 'move', 'copy')),
    path      TEXT    NOT NULL,
    target    TEXT    NOT NULL,        -- of a move or a copy
    expect    INTEGER NOT NULL,        -- the version that it replaces; -1: whatever is there
    content   INTEGER,
    PRIMARY KEY (volume, writer, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX staged_with ON staged (content);
CREATE INDEX staged_by ON staged (writer);

CREATE TABLE mounts (
    volume INTEGER NOT NULL,
    path   TEXT    NOT NULL,
    host   TEXT    NOT NULL,           -- a directory of this machine
    mode   TEXT    NOT NULL CHECK (mode IN (
        'ro',                          -- it can be read
        'cow',                         -- what is written over it stays in the volume
        'rw'                           -- it is written to
    )),
    PRIMARY KEY (volume, path)
) STRICT, WITHOUT ROWID;

-- Contents that nothing may refer to any more, and chunks: looked at, then dropped, a few at a time.
CREATE TABLE loose_contents (content INTEGER PRIMARY KEY) STRICT;
CREATE TABLE loose_chunks (chunk INTEGER PRIMARY KEY) STRICT;

-- The passages of the texts that are heads. Their words are in the index alone.
CREATE TABLE passages (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    volume  INTEGER NOT NULL,
    path    TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,
    line    INTEGER NOT NULL,          -- its first, from 1
    hash    BLOB    NOT NULL           -- BLAKE3 of its words, 16 bytes: one that stays is left alone
) STRICT;
CREATE INDEX passages_of ON passages (volume, path);

CREATE VIRTUAL TABLE file_words USING fts5(
    text, marks,                       -- marks: v12 stands for the volume 12
    content = '', contentless_delete = 1, detail = 'column', tokenize = 'porter unicode61'
);
INSERT INTO file_words (file_words, rank) VALUES ('rank', 'bm25(1.0, 0.0)');
CREATE VIRTUAL TABLE file_terms USING fts5vocab(file_words, 'row');

CREATE TABLE passage_vectors (
    passage INTEGER PRIMARY KEY,
    volume  INTEGER NOT NULL,
    model   TEXT    NOT NULL,
    vector  BLOB    NOT NULL           -- little-endian float32
) STRICT;
CREATE INDEX passage_vectors_of ON passage_vectors (volume);

CREATE TRIGGER passage_gone AFTER DELETE ON passages
BEGIN
    DELETE FROM file_words WHERE rowid = old.id;
    DELETE FROM passage_vectors WHERE passage = old.id;
END;

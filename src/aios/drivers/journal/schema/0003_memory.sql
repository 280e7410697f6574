-- Memory: records of processes, programs and users, and what finds them.

CREATE TABLE memories (
    number        INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice
    id            INTEGER NOT NULL,    -- 12 is m12; a fork's copies keep theirs
    owner         TEXT    NOT NULL,    -- pid:7, program:ann/travel, user:ann
    writer        INTEGER NOT NULL,    -- a pid
    born          INTEGER NOT NULL,    -- the number of the call that wrote it
    text          TEXT    NOT NULL,
    data          BLOB    NOT NULL,    -- JSON; empty: none
    tags          TEXT    NOT NULL,    -- JSON array
    source        TEXT    NOT NULL,
    time          REAL    NOT NULL,    -- when it was so
    valid_from    REAL    NOT NULL,    -- since when it is in here
    marks         TEXT    NOT NULL,    -- words that stand for owner, tags and source
    bytes         INTEGER NOT NULL,    -- what it counts against the quota
    valid_to      REAL,                -- since when it is corrected
    superseded_by INTEGER,             -- the id of what corrected it
    died          INTEGER,             -- the number of the call that did
    UNIQUE (owner, id)
) STRICT;
CREATE INDEX memories_written ON memories (writer, born);

CREATE VIEW good_memories AS SELECT number, text, marks FROM memories WHERE valid_to IS NULL;

-- The words of what is good now. Marks are looked for but weigh nothing.
CREATE VIRTUAL TABLE memory_words USING fts5(
    text, marks,
    content = 'good_memories', content_rowid = 'number', tokenize = 'porter unicode61'
);
INSERT INTO memory_words (memory_words, rank) VALUES ('secure-delete', 1);
INSERT INTO memory_words (memory_words, rank) VALUES ('rank', 'bm25(1.0, 0.0)');
CREATE VIRTUAL TABLE memory_terms USING fts5vocab(memory_words, 'row');

-- Vectors of what is good now; beside is the record whose text is in it as well, so that nothing is
-- left of that one either when it goes. made grows: who has read up to a number reads on from there.
CREATE TABLE vectors (
    made   INTEGER PRIMARY KEY AUTOINCREMENT,
    number INTEGER NOT NULL UNIQUE,
    owner  TEXT    NOT NULL,
    model  TEXT    NOT NULL,
    beside INTEGER,
    vector BLOB    NOT NULL            -- little-endian float32
) STRICT;
CREATE INDEX vectors_of ON vectors (owner, made);
CREATE INDEX vectors_beside ON vectors (beside) WHERE beside IS NOT NULL;

CREATE TRIGGER memory_written AFTER INSERT ON memories WHEN new.valid_to IS NULL
BEGIN
    INSERT INTO memory_words (rowid, text, marks) VALUES (new.number, new.text, new.marks);
END;

CREATE TRIGGER memory_revived AFTER UPDATE OF valid_to ON memories
WHEN old.valid_to IS NOT NULL AND new.valid_to IS NULL
BEGIN
    INSERT INTO memory_words (rowid, text, marks) VALUES (new.number, new.text, new.marks);
END;

CREATE TRIGGER memory_corrected AFTER UPDATE OF valid_to ON memories
WHEN old.valid_to IS NULL AND new.valid_to IS NOT NULL
BEGIN
    INSERT INTO memory_words (memory_words, rowid, text, marks)
        VALUES ('delete', old.number, old.text, old.marks);
    DELETE FROM vectors WHERE number = old.number OR beside = old.number;
END;

CREATE TRIGGER memory_deleted AFTER DELETE ON memories WHEN old.valid_to IS NULL
BEGIN
    INSERT INTO memory_words (memory_words, rowid, text, marks)
        VALUES ('delete', old.number, old.text, old.marks);
    DELETE FROM vectors WHERE number = old.number OR beside = old.number;
END;

CREATE TABLE memory_quotas (
    owner TEXT    PRIMARY KEY,
    user  TEXT    NOT NULL,            -- whose reserve it is taken from
    bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX memory_quotas_of ON memory_quotas (user);

-- Content once, contexts with a past, and what a process needs to go on in a second life.

-- Content, each kept once, whoever refers to it: a message, the tools of a generation, a large
-- request or reply. What nothing refers to goes when the journal is pruned.
CREATE TABLE blobs (
    id     INTEGER PRIMARY KEY,
    hash   BLOB    NOT NULL UNIQUE,    -- BLAKE3 of the content, 16 bytes
    packed INTEGER NOT NULL,           -- 1: body is a zstd frame
    body   BLOB    NOT NULL
) STRICT;

-- Conversations as a tree: a turn is a message after another turn, so that one that goes on adds
-- only what is new. A parent's id is lower than its children's.
CREATE TABLE turns (
    id      INTEGER PRIMARY KEY,
    parent  INTEGER NOT NULL,          -- 0: it is the first
    message INTEGER NOT NULL,          -- a blob
    UNIQUE (parent, message)
) STRICT;

ALTER TABLE calls ADD COLUMN content INTEGER; -- a blob: the request, instead of there
ALTER TABLE calls ADD COLUMN said INTEGER;    -- a turn: the last of the request's messages
ALTER TABLE calls ADD COLUMN tools INTEGER;   -- a blob: the request's tools, a JSON array
ALTER TABLE calls ADD COLUMN void INTEGER NOT NULL DEFAULT 0; -- 1: a rollback left it behind

ALTER TABLE tokens ADD COLUMN detail BLOB NOT NULL DEFAULT X''; -- JSON: what the slice added

ALTER TABLE ends ADD COLUMN code TEXT;        -- of the error
ALTER TABLE ends ADD COLUMN content INTEGER;  -- a blob: the reply, instead of there

-- The messages of every context. born and died are numbers of calls: what was in a context when a
-- call had ended is what was born by then and had not died.
CREATE TABLE messages (
    pid      INTEGER NOT NULL,
    context  TEXT    NOT NULL,
    position REAL    NOT NULL,
    born     INTEGER NOT NULL,
    died     INTEGER,
    message  INTEGER NOT NULL,         -- a blob
    PRIMARY KEY (pid, context, position, born)
) STRICT, WITHOUT ROWID;

INSERT OR IGNORE INTO blobs (hash, packed, body)
    SELECT content_hash(message), 0, message FROM contexts ORDER BY pid, context, ordinal;
INSERT INTO messages
    SELECT pid, context, ordinal, 0, NULL, (SELECT id FROM blobs WHERE hash = content_hash(message))
    FROM contexts;
DROP TABLE contexts;

-- How a context is kept within its window.
CREATE TABLE settings (
    pid     INTEGER NOT NULL,
    context TEXT    NOT NULL,
    detail  BLOB    NOT NULL,          -- JSON
    PRIMARY KEY (pid, context)
) STRICT, WITHOUT ROWID;

CREATE TABLE spent (
    pid   INTEGER PRIMARY KEY,
    usage BLOB    NOT NULL,            -- JSON
    left  BLOB    NOT NULL             -- JSON: of its budget
) STRICT;

CREATE TABLE environments (
    pid    INTEGER PRIMARY KEY,
    sealed BLOB    NOT NULL            -- under a key that is not in this file
) STRICT;

CREATE TABLE mail (
    pid    INTEGER NOT NULL,
    number INTEGER NOT NULL,
    taken  INTEGER,                    -- the number of the call that received it
    mail   BLOB    NOT NULL,           -- JSON
    PRIMARY KEY (pid, number)
) STRICT, WITHOUT ROWID;

-- Snapshots of whole processes: a call's number is where in its life it was.
CREATE TABLE marks (
    id     TEXT    PRIMARY KEY,
    pid    INTEGER NOT NULL,
    call   INTEGER NOT NULL,
    at     REAL    NOT NULL,
    detail BLOB    NOT NULL            -- JSON
) STRICT;
CREATE INDEX marks_of ON marks (pid);

-- Old events are kept many to a row, compressed; only these rows are found by process.
ALTER TABLE events ADD COLUMN packed INTEGER NOT NULL DEFAULT 0; -- 1: body is a zstd frame
CREATE INDEX events_packed ON events (first) WHERE packed;
CREATE TABLE events_of (
    pid   INTEGER NOT NULL,
    first INTEGER NOT NULL,            -- a packed row
    PRIMARY KEY (pid, first)
) STRICT, WITHOUT ROWID;

-- The journal of one kernel. Times are seconds since the epoch; JSON is kept as the bytes it came in.

PRAGMA application_id = 1634299763; -- "aios"

-- What happened, numbered by the kernel. A row holds the events of one transaction, or a part of them:
-- with a row for each event and an index by process, a call took 1.6 times as long to write.
CREATE TABLE events (
    first INTEGER PRIMARY KEY,         -- the number of the first event in body
    last  INTEGER NOT NULL,
    pids  TEXT    NOT NULL,            -- whose they are: ,0,7,12, (0 is the kernel itself)
    body  BLOB    NOT NULL             -- JSON, one event a line
) STRICT;

-- The processes that have not been reaped.
CREATE TABLE processes (
    pid         INTEGER PRIMARY KEY,
    user        TEXT    NOT NULL,
    parent      INTEGER,
    program     TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN (
        'new',                         -- made, its program has not begun
        'live',                        -- may call
        'suspended',                   -- gets no slice until all its reasons are gone
        'zombie'                       -- ended, nobody has asked for its exit status yet
    )),
    reasons     BLOB    NOT NULL,      -- JSON array: why it is suspended
    priority    INTEGER NOT NULL,
    os_pid      INTEGER,
    os_started  REAL,
    created_at  REAL    NOT NULL,
    ended_at    REAL,
    exit_status INTEGER,
    detail      BLOB    NOT NULL       -- JSON: the rest
) STRICT;

-- How calls began and how they ended: two tables, so that an end does not write the request again.
CREATE TABLE calls (
    number     INTEGER PRIMARY KEY,    -- 12 is the call c12
    pid        INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    started_at REAL    NOT NULL,
    request    BLOB    NOT NULL        -- JSON
) STRICT;
CREATE INDEX calls_of ON calls (pid);

CREATE TABLE ends (
    number   INTEGER PRIMARY KEY,
    state    TEXT    NOT NULL CHECK (state IN (
        'queued',                      -- in line for a core
        'active',                      -- its work is going on
        'blocked',                     -- waits for an approval, a budget or a resume
        'done',                        -- it has its reply
        'failed',                      -- it has an error
        'cancelled',                   -- ended before its result
        'unknown'                      -- a crash hid whether its effect happened
    )),
    ended_at REAL    NOT NULL,
    reply    BLOB,                     -- JSON
    error    TEXT
) STRICT;

CREATE TABLE open_calls (number INTEGER PRIMARY KEY) STRICT; -- begun, not ended

-- What each slice decoded: little-endian int32.
CREATE TABLE tokens (
    call    INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    tokens  BLOB    NOT NULL,
    PRIMARY KEY (call, ordinal)
) STRICT, WITHOUT ROWID;

-- The messages of every context, in order.
CREATE TABLE contexts (
    pid     INTEGER NOT NULL,
    context TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,
    message BLOB    NOT NULL,          -- JSON
    PRIMARY KEY (pid, context, ordinal)
) STRICT;

-- Bearer keys; only the SHA-256 of each.
CREATE TABLE keys (
    id   TEXT PRIMARY KEY,
    info BLOB NOT NULL,                -- JSON
    hash TEXT NOT NULL
) STRICT;

CREATE TABLE grants (
    holder     TEXT NOT NULL,          -- pid:7, user:ann
    action     TEXT NOT NULL,          -- a call's name, or *
    resource   TEXT NOT NULL,
    expires_at REAL,
    PRIMARY KEY (holder, action, resource)
) STRICT;

CREATE TABLE snapshots (
    id         TEXT    PRIMARY KEY,
    pid        INTEGER NOT NULL,
    path       TEXT    NOT NULL,
    created_at REAL    NOT NULL,
    detail     BLOB    NOT NULL        -- JSON
) STRICT;

-- The highest numbers ever forgotten, so that none is given twice.
CREATE TABLE forgotten (
    kind   TEXT    PRIMARY KEY CHECK (kind IN ('pid', 'call')),
    number INTEGER NOT NULL
) STRICT;

-- what keys have sent and got, redacted, where an admin has turned that on
CREATE TABLE capture_keys (
    key_id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE captures (
    id         INTEGER PRIMARY KEY,
    at         REAL NOT NULL,
    key_id     TEXT NOT NULL,
    request_id TEXT NOT NULL,
    endpoint   TEXT NOT NULL,
    path       TEXT NOT NULL,
    status     INTEGER NOT NULL,
    prompt     TEXT NOT NULL,
    answer     TEXT NOT NULL
) STRICT;

CREATE INDEX captures_key_id ON captures (key_id, id);
CREATE INDEX captures_at ON captures (at);

CREATE TABLE endpoints (
    name       TEXT PRIMARY KEY,
    spec       TEXT NOT NULL CHECK (json_valid(spec)),
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) STRICT;

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    scopes     TEXT NOT NULL CHECK (json_valid(scopes)),
    endpoints  TEXT NOT NULL CHECK (json_valid(endpoints)),
    created_at REAL NOT NULL,
    expires_at REAL
) STRICT;

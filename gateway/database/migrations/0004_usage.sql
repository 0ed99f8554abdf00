CREATE TABLE usage_requests (
    at            REAL NOT NULL,
    request_id    TEXT NOT NULL,
    key_id        TEXT NOT NULL,
    endpoint      TEXT NOT NULL,
    worker        TEXT NOT NULL,
    status        INTEGER NOT NULL,
    stream        INTEGER NOT NULL,
    client_gone   INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    tokens_in     INTEGER NOT NULL,
    tokens_out    INTEGER NOT NULL,
    tokens_cached INTEGER NOT NULL,
    estimated     INTEGER NOT NULL,
    queue_ms      INTEGER NOT NULL,
    first_byte_ms INTEGER,
    total_ms      INTEGER NOT NULL
) STRICT;

CREATE INDEX usage_requests_at ON usage_requests (at);

-- sums of the same by day (UTC), key and endpoint: they stay when single requests go
CREATE TABLE usage_days (
    day           TEXT NOT NULL,
    key_id        TEXT NOT NULL,
    endpoint      TEXT NOT NULL,
    requests      INTEGER NOT NULL,
    errors        INTEGER NOT NULL,
    clients_gone  INTEGER NOT NULL,
    estimated     INTEGER NOT NULL,
    tokens_in     INTEGER NOT NULL,
    tokens_out    INTEGER NOT NULL,
    tokens_cached INTEGER NOT NULL,
    queue_ms      INTEGER NOT NULL,
    answered      INTEGER NOT NULL,
    first_byte_ms INTEGER NOT NULL,
    total_ms      INTEGER NOT NULL,
    PRIMARY KEY (day, key_id, endpoint)
) STRICT, WITHOUT ROWID;

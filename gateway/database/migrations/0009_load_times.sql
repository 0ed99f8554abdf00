CREATE TABLE load_times (
    endpoint TEXT PRIMARY KEY,
    seconds  REAL NOT NULL,
    at       REAL NOT NULL
) STRICT;

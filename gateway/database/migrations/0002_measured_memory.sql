CREATE TABLE measured_memory (
    model    TEXT NOT NULL,
    engine   TEXT NOT NULL,
    gpu      TEXT NOT NULL,
    flags    TEXT NOT NULL,
    measured TEXT NOT NULL CHECK (json_valid(measured)),
    at       REAL NOT NULL,
    PRIMARY KEY (model, engine, gpu, flags)
) STRICT;

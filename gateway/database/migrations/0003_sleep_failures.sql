CREATE TABLE sleep_failures (
    image  TEXT NOT NULL,
    model  TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (image, model)
) STRICT, WITHOUT ROWID;

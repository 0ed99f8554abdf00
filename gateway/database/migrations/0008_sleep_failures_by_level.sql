ALTER TABLE sleep_failures RENAME TO sleep_failures_before;

CREATE TABLE sleep_failures (
    engine TEXT NOT NULL,
    model  TEXT NOT NULL,
    level  TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (engine, model, level)
) STRICT, WITHOUT ROWID;

-- which level had failed was not kept: taken for the one that is tried first
INSERT INTO sleep_failures SELECT image, model, 'asleep_1', reason, at FROM sleep_failures_before;

DROP TABLE sleep_failures_before;

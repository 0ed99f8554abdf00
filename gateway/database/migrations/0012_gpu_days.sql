-- what endpoints have had of the GPUs, by day (UTC); costs in billionths of a unit, at the prices of the time
CREATE TABLE gpu_days (
    day         TEXT NOT NULL,
    endpoint    TEXT NOT NULL,
    gpu_ms      INTEGER NOT NULL,
    gpu_cost    INTEGER NOT NULL,
    energy_mj   INTEGER,
    energy_cost INTEGER,
    PRIMARY KEY (day, endpoint)
) STRICT, WITHOUT ROWID;

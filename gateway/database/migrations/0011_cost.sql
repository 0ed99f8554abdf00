-- billionths of a unit, by the prices of the time: what ran before there were prices cost nothing
ALTER TABLE usage_requests ADD COLUMN cost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_days ADD COLUMN cost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budgets ADD COLUMN cost INTEGER NOT NULL DEFAULT 0;

-- keys as they were stay valid: no limits, no budget, no predecessor
ALTER TABLE keys ADD COLUMN priority TEXT NOT NULL DEFAULT 'interactive';
ALTER TABLE keys ADD COLUMN limits TEXT CHECK (limits IS NULL OR json_valid(limits));
ALTER TABLE keys ADD COLUMN budget TEXT CHECK (budget IS NULL OR json_valid(budget));
ALTER TABLE keys ADD COLUMN last_used_at REAL;
-- after a rotation: the key before, and until when it still opens
ALTER TABLE keys ADD COLUMN previous_digest BLOB CHECK (previous_digest IS NULL OR length(previous_digest) = 32);
ALTER TABLE keys ADD COLUMN previous_until REAL;

-- what a key has spent of its budget in the newest period it has seen
CREATE TABLE budgets (
    key_id TEXT PRIMARY KEY,
    period TEXT NOT NULL,
    number INTEGER NOT NULL,
    tokens INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

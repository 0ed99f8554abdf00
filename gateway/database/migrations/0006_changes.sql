ALTER TABLE endpoints ADD COLUMN changed_at REAL;
ALTER TABLE endpoints ADD COLUMN good TEXT CHECK (good IS NULL OR json_valid(good));
ALTER TABLE endpoints ADD COLUMN rolled_back TEXT CHECK (rolled_back IS NULL OR json_valid(rolled_back));

"""The hot path: one request from its first byte to its last."""

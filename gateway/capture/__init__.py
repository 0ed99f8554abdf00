"""What keys that asked for it have sent and got: redacted, kept for a while, deleted on demand."""

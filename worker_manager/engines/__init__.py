"""What runs inside a worker. One adapter an engine: command line, readiness, what its log means."""

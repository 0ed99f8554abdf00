"""How a worker comes to run: as a container (Docker Engine) or as a child process (a machine without Docker)."""

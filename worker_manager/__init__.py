"""The worker manager: the only process that holds the Docker socket. It owns nothing on disk and decides nothing."""

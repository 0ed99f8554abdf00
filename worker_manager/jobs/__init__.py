"""Programs that run to their end in a container (or process) of their own."""

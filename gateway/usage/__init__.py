"""What was used, by whom, kept how long."""

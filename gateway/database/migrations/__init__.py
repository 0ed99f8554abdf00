"""The SQL files, in order."""

"""What `scripts/up`, `down`, `test` and `measure` share. Standard library only: they run before anything is installed."""

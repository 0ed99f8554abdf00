"""How much memory a worker needs, derived from its model's files and then learned. Pure: nothing here does I/O."""

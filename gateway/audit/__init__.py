"""Every change: recorded with the change itself, shown, verified."""

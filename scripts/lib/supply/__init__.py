"""What Hostler is made of that others wrote: read from the lock files, listed (scripts/sbom), scanned.

These modules use development dependencies, so the scripts run them in the checkout's virtual environment.
"""

"""The battery: what Hostler promises to survive, each promise with the tests that hold it and their figures."""

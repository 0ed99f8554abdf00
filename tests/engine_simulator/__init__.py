"""A fast fake of vLLM: its command line and routes, tokens from a seed, faults on demand, no weights and no GPU."""

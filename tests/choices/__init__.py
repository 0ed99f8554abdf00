"""Ways of choosing a worker compared on conversations: `python -m tests.choices`; see docs/performance.md."""

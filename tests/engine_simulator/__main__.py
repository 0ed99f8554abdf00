"""`python -m tests.engine_simulator serve MODEL --uds PATH ...`: vLLM's command line."""

import sys

from tests.engine_simulator.command_line import parse
from tests.engine_simulator.server import run


def main() -> int:
    """Parse, load, serve. Exit codes are vLLM's: 0 after TERM, 1 for a failed start, 2 for a bad flag."""
    return run(parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())

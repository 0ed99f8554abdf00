"""`python -m worker_manager`."""

import sys

from worker_manager.commands import main

if __name__ == "__main__":
    sys.exit(main())

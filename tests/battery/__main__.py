"""`python -m tests.battery`: what `scripts/battery` runs."""

import sys

from tests.battery.command import main

sys.exit(main())

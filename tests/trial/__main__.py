"""`python -m tests.trial`: what `scripts/trial` runs."""

import sys

from tests.trial.command import main

sys.exit(main())

"""Run the battery, tests/battery, in the checkout's virtual environment."""

import os
import subprocess

from lib import venv
from lib.console import ROOT


def run(words: list[str]) -> int:
    """The script's body: the exit code of the battery. Files named on the command line are relative to here."""
    python = venv.ensure("dev")
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run([str(python), "-m", "tests.battery", *words], env=env, check=False).returncode

"""Run `gateway.replay` in the checkout's virtual environment."""

import os
import subprocess

from lib import venv
from lib.console import ROOT


def run(words: list[str]) -> int:
    """The script's body: the exit code of the replay. Files named on the command line are relative to here."""
    python = venv.ensure("gateway", "manager", instead=("dev",))
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run([str(python), "-m", "gateway.replay", *words], env=env, check=False).returncode

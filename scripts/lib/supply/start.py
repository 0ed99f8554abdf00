"""Run a module of this package in the checkout's virtual environment, which has what it imports."""

import os
import subprocess

from lib import venv
from lib.console import ROOT


def run(module: str, words: list[str]) -> int:
    """The exit code of `lib.supply.MODULE`. Files named on the command line are relative to here."""
    python = venv.ensure("dev")
    path = os.pathsep.join((str(ROOT / "scripts"), str(ROOT)))
    env = dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([str(python), "-m", f"lib.supply.{module}", *words], env=env, check=False).returncode

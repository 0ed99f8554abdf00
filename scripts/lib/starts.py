"""Measure first and later starts of the real vLLM on the CPU, tests/engine/starts.py, in the checkout's environment."""

import os
import subprocess

from lib import venv
from lib.console import ROOT


def run(words: list[str]) -> int:
    """The script's body: the exit code of the measurement. Needs Docker and the CPU engine image (`scripts/up`)."""
    python = venv.ensure("dev")
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run([str(python), "-m", "tests.engine.starts", *words], env=env, check=False).returncode

"""What the scripts say to the person who runs them, and the one error they end with."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout."""


class Problem(Exception):
    """What went wrong and what to do about it, in a sentence or two. The script prints it and exits 1."""


def say(text: str = "") -> None:
    """One line of news."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One line that should not be missed."""
    print(f"!! {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, then say how long it took."""
    say(f"-- {title}")
    began = time.monotonic()
    yield
    if (seconds := time.monotonic() - began) > 1:
        say(f"   done in {seconds:.0f} s")


def main(run: Callable[[list[str]], int]) -> None:
    """Run a script's body; a Problem becomes its sentence and exit code 1, Ctrl-C exit code 130, a closed pipe 141."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except Problem as problem:
        warn(str(problem))
        code = 1
    except KeyboardInterrupt:
        say()
        code = 130
    except BrokenPipeError:  # whoever reads has enough; the rest goes nowhere, or Python would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def answer(command: list[str], seconds: float = 15, env: dict[str, str] | None = None) -> str | None:
    """What a command prints, stripped; None where it is missing, fails, or takes longer than `seconds`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def do(command: list[str], what: str, seconds: float = 3600, env: dict[str, str] | None = None) -> None:
    """Run a command in sight of the user. Raises Problem, which names `what`, if it fails."""
    try:
        done = subprocess.run(command, timeout=seconds, check=False, cwd=ROOT, env=env)
    except FileNotFoundError:
        raise Problem(f"{what} failed: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Problem(f"{what} took longer than {seconds:.0f} s and was stopped") from None
    if done.returncode != 0:
        raise Problem(f"{what} failed (exit code {done.returncode}); the lines above say why")


def confirm(question: str) -> bool:
    """Ask y/N; no terminal or no answer means no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        say()
        return False

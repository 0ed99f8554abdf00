"""Waiting until the gateway says that it is ready, in sight of the user."""

import sys
import time
from collections.abc import Callable

from lib import address
from lib.console import Problem, say, warn

OK = 200


def wait(seconds: float, trouble: Callable[[], str | None], tail: Callable[[], str]) -> float:
    """Wait for GET /readyz to answer 200; the seconds it took.

    `trouble` says why waiting is no use any more, or None; `tail` gives the last log lines, shown on failure.
    Raises Problem after `seconds`, or at once on trouble.
    """
    began = time.monotonic()
    shown = -5.0
    while True:
        status, body = address.call("GET", "/readyz", seconds=3)
        passed = time.monotonic() - began
        if status == OK:
            _clear()
            say(f"   ready after {passed:.1f} s")
            for part, state in (body["parts"] if isinstance(body, dict) else {}).items():
                if state != "ok":
                    warn(f"{part}: {state}")
            return passed
        why = "the gateway does not answer yet" if status == 0 else _reason(body)
        problem = trouble() or (f"not ready after {seconds:.0f} s: {why}" if passed > seconds else None)
        if problem:
            _clear()
            warn("the last lines of the logs:")
            say(tail())
            raise Problem(problem)
        if sys.stdout.isatty():
            print(f"\r   {passed:4.0f} s  {why[:90]:<90}", end="", flush=True)
        elif passed - shown >= 5:  # noqa: PLR2004 - a line each five seconds
            say(f"   {passed:4.0f} s  {why}")
            shown = passed
        time.sleep(0.25)


def _reason(body: object) -> str:
    return address.message(body).replace("\n", " ")


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r" + " " * 100 + "\r", end="", flush=True)

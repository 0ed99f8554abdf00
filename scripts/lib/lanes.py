"""Runs pytest in lanes, several at once, and gives the few tests that failed beside others one more run on their own.

What fails twice has failed. What passes alone is told loudly as unsteady: it is a bug to be found, in a test that
counts on a quick machine or in what it tests, and no reason to hold back a change that has nothing to do with it.
"""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

from lib.console import ROOT, say

TESTS_FAILED = 1
"""pytest's exit status where tests have failed, and nothing worse has happened."""
MOST_UNSTEADY = 5
"""Where more fail, it is not for the machine."""


class Lane:
    """One pytest run over some folders, with a record of its own of what failed."""

    def __init__(self, pytest: Sequence[str], words: Sequence[str], env: Mapping[str, str], number: int) -> None:
        self.title = f"pytest {' '.join(words)}"
        self._cache = ROOT / ".pytest_cache" / f"lane-{number}"
        self._failed_file = self._cache / "v" / "cache" / "lastfailed"
        self._command = [*pytest, "-o", f"cache_dir={self._cache}", *words]
        self._env = dict(env)

    def begin(self, output: int | None) -> subprocess.Popen[bytes]:
        """Start it; `output` is a file's descriptor, or nothing where it is told in sight."""
        self._failed_file.unlink(missing_ok=True)
        return self._run(output)

    def failed(self) -> list[str]:
        """The tests that failed, by pytest's names."""
        try:
            return sorted(json.loads(self._failed_file.read_bytes()))
        except (OSError, ValueError):
            return []

    def again(self) -> bool:
        """Run what failed once more, in sight; whether it passed."""
        return self._run(None, "--last-failed", "--last-failed-no-failures=none").wait() == 0

    def _run(self, output: int | None, *words: str) -> subprocess.Popen[bytes]:
        errors = None if output is None else subprocess.STDOUT
        return subprocess.Popen([*self._command, *words], cwd=ROOT, env=self._env, stdout=output, stderr=errors)


def run(lanes: Sequence[Lane]) -> list[tuple[str, bool]]:
    """Run all at once; the first in sight, what the others say when they are through. A line of each, and if it passed.

    Tests that failed run once more when all lanes are through; a line names those that passed then.
    """
    with contextlib.ExitStack() as stack:
        under_way = []
        for lane in reversed(lanes):
            told = None if lane is lanes[0] else stack.enter_context(tempfile.TemporaryFile())
            say(f"\n-- {lane.title}" + ("" if told is None else ": at the same time, told below"))
            process = lane.begin(None if told is None else told.fileno())
            stack.callback(process.kill)
            under_way.append((lane, process, told, time.monotonic()))
        results = []
        for lane, process, told, began in reversed(under_way):
            code = process.wait()
            seconds = time.monotonic() - began
            if told is not None:
                told.seek(0)
                say(f"\n-- {lane.title}\n{told.read().decode(errors='replace')}")
            results.append((lane, code, seconds))
    return [line for lane, code, seconds in results for line in _lines(lane, code, seconds)]


def _lines(lane: Lane, code: int, seconds: float) -> list[tuple[str, bool]]:
    title = f"{lane.title} ({seconds:.0f} s)"
    failed = lane.failed()
    if code != TESTS_FAILED or not 0 < len(failed) <= MOST_UNSTEADY:
        return [(title, code == 0)]
    say(f"\n-- once more, alone: {len(failed)} that failed: {', '.join(failed)}")
    if not lane.again():
        return [(title, False)]
    return [
        (title, True),
        *((f"UNSTEADY, failed beside others and passed alone, a bug: {name}", True) for name in failed),
    ]

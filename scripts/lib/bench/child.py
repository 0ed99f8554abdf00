"""A process of the bench: pinned to a core, its output kept in a file, ended with all that it started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lib.bench import cpu
from lib.console import Problem

STOP_SECONDS = 10.0
TAIL_CHARACTERS = 1500


class Child:
    """Started at once, in a group of its own."""

    def __init__(self, name: str, command: Sequence[str], *, core: int, log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                cwd=log.parent,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """The process and all that descend from it."""
        return cpu.family(self._process.pid)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Return once it is ready. Raises Problem with its last words if it ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended at once" if ended else f"was not ready within {seconds:.0f} s"
                raise Problem(f"{self.name} {what}; its last words:\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of its output."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:]

    def finish(self, seconds: float) -> None:
        """Wait for its own end, and end it after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.stop()

    def stop(self) -> None:
        """TERM, then KILL for the whole group."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

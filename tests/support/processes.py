"""Real processes for tests: started in a group of their own, their output kept, never left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.waiting import DEADLINE_SECONDS, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
STOP_SECONDS = 5.0


class ProcessEndedError(AssertionError):
    """The process ended before it was ready; the message carries its output."""


class RunningProcess:
    """A child process in its own group; stdout and stderr go to one file, read by `output`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = REPOSITORY) -> None:
        self.command = list(command)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> str:
        """Everything printed so far, stdout and stderr together."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Return the exit code, once it has ended. Raises `subprocess.TimeoutExpired`."""
        return self._popen.wait(seconds)

    def wait_for_output(self, text: str, seconds: float = DEADLINE_SECONDS) -> None:
        """Return as soon as `text` was printed. Raises `ProcessEndedError`, `DeadlineMissedError`."""
        self._wait_while_running(lambda: text in self.output, f"{text!r} printed", seconds)

    def wait_for_socket(self, path: Path, seconds: float = DEADLINE_SECONDS) -> None:
        """Return as soon as the Unix socket takes connections. Raises `ProcessEndedError`, `DeadlineMissedError`."""
        self._wait_while_running(lambda: accepts_connections(path), f"a server on {path}", seconds)

    def wait_for_port(self, port: int, seconds: float = DEADLINE_SECONDS) -> None:
        """Return as soon as 127.0.0.1:`port` takes connections. Raises as `wait_for_socket`."""
        self._wait_while_running(lambda: accepts_connections(("127.0.0.1", port)), f"a server on port {port}", seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its group."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process alone: what `kill -9 PID` does. Returns when it is gone."""
        self._popen.kill()
        self._popen.wait(STOP_SECONDS)

    def stop(self) -> None:
        """TERM, then KILL for the whole group; no error if it is gone already."""
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(STOP_SECONDS)
        self._log.close()

    def _wait_while_running(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        def ready_or_over() -> bool:
            return condition() or self.exit_code is not None

        wait_until(ready_or_over, f"{what} by {self.command}", seconds=seconds)
        if not condition():
            raise ProcessEndedError(f"{self.command} ended with {self.exit_code}, expected {what}:\n{self.output}")


@contextlib.contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = REPOSITORY
) -> Iterator[RunningProcess]:
    """Run a process for the length of a `with` block; `env` is added to this process's own."""
    process = RunningProcess(command, env, cwd)
    try:
        yield process
    finally:
        process.stop()


def python_module(module: str, *arguments: str) -> list[str]:
    """Give the command that runs `python -m module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def accepts_connections(address: Path | tuple[str, int]) -> bool:
    """Whether a server listens on this Unix socket, or on this (host, port)."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
        return True


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Make a temporary folder with a path short enough for Unix sockets (pytest's `tmp_path` may not be)."""
    with tempfile.TemporaryDirectory(prefix="hst-", dir="/tmp") as folder:
        yield Path(folder)

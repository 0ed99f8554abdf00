"""What can be put under test: a gateway that runs, and where it is reached."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Protocol

from lib.bench.child import Child


class Bench(Protocol):
    """What a target finds when it is started."""

    folder: Path
    """A folder for its files, with a short path."""
    engine_core: int
    gateway_core: int
    python: Path
    """The interpreter of Hostler's processes."""
    engine_python: Path
    """The interpreter of engine and load."""

    def engine_port(self) -> int:
        """The port of the mock engine for gateways that reach it over TCP."""
        ...


class Target:
    """A running gateway under test."""

    strict = True
    """It forwards the engine's bytes as they are."""
    slow = False
    """It takes part in the plain scenarios only; more would last for ever."""
    chunks_per_second = 1_000_000
    """What it keeps up with: the rate of paced streams is lowered to that."""
    start_seconds = 0.005
    """What the beginning of one stream takes at most, while the streams before it already run."""
    key = "bench"
    tls = False
    """It is reached through TLS."""

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.about = about
        self.port = 0
        self.children: list[Child] = []

    def watch(self) -> dict[str, list[int]]:
        """The processes whose CPU time counts, by name; `gateway` is the one under test."""
        return {"gateway": [pid for child in self.children for pid in child.pids()]}

    def rest(self) -> None:
        """Stop the gateway where it stands: what it does while others are measured is not in their figures."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of its rest."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.watch()["gateway"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End its processes."""
        if self.children:
            self.go_on()
        for child in reversed(self.children):
            child.stop()

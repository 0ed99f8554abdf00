"""What can be put under test: a gateway that runs, and where it is reached."""

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
    slowness = 1
    """Its streams get 1/slowness of the rate, so that it keeps up with them."""
    key = "bench"

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.about = about
        self.port = 0
        self.children: list[Child] = []

    def watch(self) -> dict[str, list[int]]:
        """The processes whose CPU time counts, by name; `gateway` is the one under test."""
        return {"gateway": [pid for child in self.children for pid in child.pids()]}

    def stop(self) -> None:
        """End its processes."""
        for child in reversed(self.children):
            child.stop()

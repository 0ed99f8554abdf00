"""What is measured: the scenarios and how each becomes a job."""

from dataclasses import dataclass

from lib.bench.job import Job
from lib.console import Problem

RATE = 50
"""Events a second of a paced stream."""
LEAD_SECONDS = 1.5
"""Streams last so much longer than the counted interval and its warm-up: some begin later than others."""
ENDLESS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way to load a gateway."""

    name: str
    about: str
    connections: int
    streams: bool = False
    rate: int = 0
    """Of each stream; 0: as fast as they are taken."""
    fresh: bool = False
    prompt_bytes: int = 200
    once: bool = False
    """One round is enough: it is about losses and memory."""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "chunk" if self.streams else "request"

    def job(
        self, *, port: int, key: str, seconds: float, strict: bool, slowness: int, watch: dict[str, list[int]]
    ) -> Job:
        """For one target; a slow one gets its streams at a fraction of the rate, 1/`slowness`."""
        rate = max(1, self.rate // slowness) if self.rate else 0
        warm = 1.0 if self.streams else 0.5
        events = 0
        if self.streams:
            events = round(rate * (LEAD_SECONDS + warm + seconds)) if rate else ENDLESS
        return Job(
            host="127.0.0.1",
            port=port,
            key=key,
            connections=self.connections,
            seconds=seconds,
            warm=warm,
            events=events,
            rate=rate,
            fresh=self.fresh,
            prompt_bytes=self.prompt_bytes,
            strict=strict,
            patience=20 if rate or not self.streams else 0.2,
            watch=watch,
        )


SCENARIOS = (
    Scenario(name="json", about="JSON requests on 32 connections", connections=32),
    Scenario(name="streams-100", about=f"100 streams of {RATE} chunks/s", connections=100, streams=True, rate=RATE),
    Scenario(name="streams-400", about=f"400 streams of {RATE} chunks/s", connections=400, streams=True, rate=RATE),
)


def chosen(names: list[str]) -> list[Scenario]:
    """Scenarios by name, all where none is named; `streams` stands for all that begin so. Raises Problem."""
    if not names:
        return list(SCENARIOS)
    found = [scenario for scenario in SCENARIOS if any(_means(name, scenario.name) for name in names)]
    for name in names:
        if not any(_means(name, scenario.name) for scenario in SCENARIOS):
            raise Problem(f"there is no scenario {name}; there are {', '.join(s.name for s in SCENARIOS)}")
    return found


def _means(name: str, scenario: str) -> bool:
    return scenario == name or scenario.startswith(f"{name}-")

"""What is measured: the scenarios, and how each becomes a job for a target."""

from dataclasses import dataclass

from lib.bench.job import Job
from lib.bench.target import Target
from lib.console import Problem

RATE = 50
"""Events a second of a paced stream."""
STREAM_WARM_SECONDS = 1.0
"""From the first event of the last stream until counting begins; for JSON from the first request."""
WARM_SECONDS = 0.5
LEAD_SECONDS = 0.5
"""Paced streams last so much longer than warm-up and counted interval: some begin later than others."""
ENDLESS_EVENTS = 1_000_000_000
PATIENCE_SECONDS = 20
NO_PATIENCE_SECONDS = 0.2
"""With the end of streams that have none."""


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
    tools: int = 0
    """Functions that the model may call, some 450 bytes each."""
    plain: bool = False
    """For slow targets too."""
    once: bool = False
    """One round is enough: it is about losses and memory."""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "chunk" if self.streams else "request"

    def fits(self, target: Target) -> bool:
        """Whether a target takes part."""
        return self.plain or not target.slow

    def rate_for(self, target: Target) -> int:
        """Events a second of each stream, as many as the target keeps up with."""
        return min(self.rate, target.chunks_per_second // self.connections)

    def job(self, target: Target, seconds: float, watch: dict[str, list[int]]) -> Job:
        """For one round; a slow target gets its streams at a lower rate."""
        rate = self.rate_for(target)
        warm = STREAM_WARM_SECONDS if self.streams else WARM_SECONDS
        events = 0
        if self.streams:
            lead = LEAD_SECONDS + self.connections * target.start_seconds
            events = round(rate * (lead + warm + seconds)) if rate else ENDLESS_EVENTS
        return Job(
            host="127.0.0.1",
            port=target.port,
            key=target.key,
            connections=self.connections,
            seconds=seconds,
            warm=warm,
            events=events,
            rate=rate,
            fresh=self.fresh,
            prompt_bytes=self.prompt_bytes,
            tools=self.tools,
            strict=target.strict,
            tls=target.tls,
            patience=PATIENCE_SECONDS,
            patience_at_end=PATIENCE_SECONDS if rate else NO_PATIENCE_SECONDS,
            watch=watch,
        )


SCENARIOS = (
    Scenario(name="json", about="JSON requests on 32 kept connections", connections=32, plain=True),
    Scenario(name="json-256", about="JSON requests on 256 kept connections: saturation", connections=256),
    Scenario(name="json-32k", about="JSON requests with prompts of 32 KiB, 32 connections", connections=32,
             prompt_bytes=32 * 1024),
    Scenario(name="json-tools", about="JSON requests with 20 tools, 9 KB, 32 connections", connections=32, tools=20),
    Scenario(name="churn", about="JSON requests, a new connection for each, 32 at a time", connections=32, fresh=True),
    Scenario(name="streams-100", about=f"100 streams of {RATE} chunks/s", connections=100, streams=True, rate=RATE,
             plain=True),
    Scenario(name="streams-400", about=f"400 streams of {RATE} chunks/s", connections=400, streams=True, rate=RATE),
    Scenario(name="streams-full", about="100 streams as fast as they are taken: saturation", connections=100,
             streams=True),
    Scenario(name="streams-1000", about=f"1,000 streams of {RATE} chunks/s: is anything lost, and memory",
             connections=1000, streams=True, rate=RATE, once=True),
)  # fmt: skip


def chosen(names: list[str]) -> list[Scenario]:
    """Scenarios by name, all where none is named. Raises Problem."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in names if name not in known]:
        raise Problem(f"there is no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]

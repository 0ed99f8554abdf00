"""Who asks for what and when: a function of the seed alone.

Poisson arrivals over Zipf-popular models, all but the steady one with hours of their own; bursts; streams and JSON,
chat and plain completions, interactive and batch; some clients are impatient and some leave.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.simulation.traces import zipf_shares
from tests.trial.cast import Model, Pace

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
STREAMS, CHATS, BATCH, IMPATIENT, LEAVERS = 0.6, 0.75, 0.25, 0.06, 0.04
OPEN_SECONDS, CLOSED_SECONDS = 20.0, 35.0
"""Means of how long a model that is not steady is asked for, and not."""
BURST_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, `at` so many seconds after the beginning."""

    number: int
    at: float
    model: str
    route: str
    stream: bool
    tokens: int
    prompt: str
    batch: bool
    patience: float | None
    """What it says in `x-hostler-timeout`."""
    leaves_after: float | None
    """Its client hangs up so many seconds after it asked, if it has no answer by then."""


def traffic(seed: int, seconds: float, pace: Pace, models: Sequence[Model]) -> list[Request]:
    """All requests, in order."""
    chance = random.Random(f"trial {seed}")  # noqa: S311 - repeatable, not secret
    arrivals: list[tuple[float, str]] = []
    for model, share in zip(models, zipf_shares(len(models)), strict=True):
        hours = [(0.0, seconds)] if model.steady else list(_hours(chance, seconds))
        arrivals += [(at, model.name) for at in _poisson(chance, share * pace.rate, hours)]
    arrivals += _bursts(chance, seconds, pace, models)
    return [_request(chance, number, at, model, pace) for number, (at, model) in enumerate(sorted(arrivals))]


def _hours(chance: random.Random, seconds: float) -> Iterator[tuple[float, float]]:
    at = -chance.uniform(0, OPEN_SECONDS)
    while at < seconds:
        end = at + chance.expovariate(1 / OPEN_SECONDS)
        if end > 0:
            yield max(0.0, at), min(end, seconds)
        at = end + chance.expovariate(1 / CLOSED_SECONDS)


def _poisson(chance: random.Random, rate: float, hours: Sequence[tuple[float, float]]) -> Iterator[float]:
    for begin, end in hours:
        at = begin + chance.expovariate(rate)
        while at < end:
            yield at
            at += chance.expovariate(rate)


def _bursts(chance: random.Random, seconds: float, pace: Pace, models: Sequence[Model]) -> Iterator[tuple[float, str]]:
    at = chance.expovariate(1 / pace.burst_every)
    while at < seconds:
        model, size = chance.choice(models).name, chance.randint(pace.burst_size // 2, pace.burst_size)
        yield from ((min(seconds, at + chance.uniform(0, BURST_SECONDS)), model) for _ in range(size))
        at += chance.expovariate(1 / pace.burst_every)


def _request(chance: random.Random, number: int, at: float, model: str, pace: Pace) -> Request:
    return Request(
        number=number,
        at=at,
        model=model,
        route=CHAT if chance.random() < CHATS else PLAIN,
        stream=chance.random() < STREAMS,
        tokens=chance.randint(*pace.tokens),
        prompt=f"question {number} of {chance.getrandbits(32):08x}",
        batch=chance.random() < BATCH,
        patience=round(chance.uniform(0.5, 4.0), 1) if chance.random() < IMPATIENT else None,
        leaves_after=chance.uniform(0.05, 3.0) if chance.random() < LEAVERS else None,
    )

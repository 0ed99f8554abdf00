"""Traffic: who asks for what and when. Every trace is a function of its seed alone."""

import math
import random
from collections.abc import Callable, Iterable, Iterator

from tests.simulation.scenario import GIB, Model, Request, Scenario, cards
from worker_manager.contract import Residency

DAY = 86_400.0
ANSWER_SECONDS = 8.0
"""Mean of the time an engine takes for one answer; exponential, at least a fifth of a second."""
ANSWER_LONGEST = 120.0


def fleet(number: int) -> tuple[Model, ...]:
    """Models of mixed sizes, the most popular first: large ones that fill a card alone, and small ones that share."""
    shapes = (
        (62, 60.0),
        (34, 35.0),
        (70, 75.0),
        (22, 25.0),
        (40, 40.0),
        (62, 60.0),
        (18, 20.0),
        (30, 30.0),
    )
    picked = (shapes[index % len(shapes)] for index in range(number))
    return tuple(
        Model(
            name=f"m{index}",
            promise_mib=gib * GIB,
            load_seconds=load,
            host_mib=gib * GIB * 2 // 3,
            first_sleep_seconds=load / 4,
            sleep_seconds=gib * 2 / 3 / 12,
            wake_seconds=load / 25,
            sleep=(Residency.ASLEEP_1,),
        )
        for index, (gib, load) in enumerate(picked)
    )


def answer(chance: random.Random) -> float:
    """Seconds an engine is at one request."""
    return min(ANSWER_LONGEST, max(0.2, chance.expovariate(1 / ANSWER_SECONDS)))


def zipf_shares(number: int, exponent: float = 1.0) -> list[float]:
    """The share of requests that each of so many models gets, most popular first (Zipf's law)."""
    weights = [1 / (rank**exponent) for rank in range(1, number + 1)]
    return [weight / sum(weights) for weight in weights]


def poisson(
    chance: random.Random,
    model: str,
    rate: float,
    until: float,
    density: Callable[[float], float] = lambda _: 1.0,
) -> Iterator[Request]:
    """Arrivals at `rate` a second at most, thinned by `density`, from 0 to 1 (Lewis and Shedler, 1979)."""
    at = chance.expovariate(rate)
    while at < until:
        if chance.random() < density(at):
            yield Request(at, model, answer(chance))
        at += chance.expovariate(rate)


def bursts(chance: random.Random, model: str, every: float, until: float, size: float = 20) -> Iterator[Request]:
    """Quiet, then some requests within a minute, geometrically many with mean `size`."""
    at = chance.expovariate(1 / every)
    while at < until:
        moment = at
        while moment < until:
            yield Request(moment, model, answer(chance))
            if chance.random() < 1 / size:
                break
            moment += chance.expovariate(1 / 3)
        at = moment + chance.expovariate(1 / every)


def ping_pong(
    chance: random.Random, models: Iterable[str], gap: float, since: float, until: float
) -> Iterator[Request]:
    """One after the other in a circle: with one model more than fit, LRU swaps for every single request."""
    names = list(models)
    at, turn = since, 0
    while at < until:
        yield Request(at, names[turn % len(names)], answer(chance))
        at, turn = at + gap * chance.uniform(0.8, 1.2), turn + 1


def by_day(phase: float) -> Callable[[float], float]:
    """From a tenth at night to all of it at noon, shifted by `phase` days."""
    return lambda at: 0.55 + 0.45 * math.sin(2 * math.pi * (at / DAY + phase))


def zipf(seed: int, days: float) -> Scenario:
    """Poisson arrivals over eight Zipf-popular models on two cards."""
    chance = random.Random(f"zipf {seed}")  # noqa: S311 - a simulation, no secret
    models = fleet(8)
    asked = [
        poisson(chance, model.name, share / 40, days * DAY)
        for model, share in zip(models, zipf_shares(len(models)), strict=True)
    ]
    return _scenario("zipf", models, asked)


def bursty(seed: int, days: float) -> Scenario:
    """Models that nobody asks for in a long while, and then everybody."""
    chance = random.Random(f"bursts {seed}")  # noqa: S311 - as above
    models = fleet(8)
    asked = [bursts(chance, model.name, 1800 * (1 + rank / 2), days * DAY) for rank, model in enumerate(models)]
    return _scenario("bursts", models, asked)


def diurnal(seed: int, days: float) -> Scenario:
    """Day and night, and not for all models at once."""
    chance = random.Random(f"diurnal {seed}")  # noqa: S311 - as above
    models = fleet(8)
    shares = zipf_shares(len(models))
    asked = [
        poisson(chance, model.name, share / 20, days * DAY, by_day(rank / len(models)))
        for rank, (model, share) in enumerate(zip(models, shares, strict=True))
    ]
    return _scenario("diurnal", models, asked)


def adversarial(seed: int, days: float) -> Scenario:
    """Three large models in a circle on two cards: one more than fit."""
    chance = random.Random(f"pingpong {seed}")  # noqa: S311 - as above
    models = tuple(
        Model(name=f"m{index}", promise_mib=60 * GIB, load_seconds=45.0, sleep=(Residency.ASLEEP_1,))
        for index in range(3)
    )
    asked = [ping_pong(chance, [model.name for model in models], 30.0, 0.0, days * DAY)]
    return _scenario("pingpong", models, asked)


def busy(seed: int, days: float) -> Scenario:
    """Two models that are never idle fill both cards, and others are asked for now and then."""
    chance = random.Random(f"busy {seed}")  # noqa: S311 - as above
    models = tuple(
        Model(name=f"m{index}", promise_mib=60 * GIB, load_seconds=45.0, per_worker=32, sleep=(Residency.ASLEEP_1,))
        for index in range(5)
    )
    rates = [1.2, 1.2, 1 / 900, 1 / 900, 1 / 900]
    asked = [poisson(chance, model.name, rate, days * DAY) for model, rate in zip(models, rates, strict=True)]
    return _scenario("busy", models, asked)


def mixed(seed: int, days: float) -> Scenario:
    """All of it: one model that is never idle, a Zipf tail by day and night, bursts, and ping-pong an hour a day."""
    chance = random.Random(f"mixed {seed}")  # noqa: S311 - as above
    models = fleet(8)
    names = [model.name for model in models]
    until = days * DAY
    shares = zipf_shares(len(models))
    asked: list[Iterator[Request]] = [poisson(chance, names[0], 1 / 6, until)]
    asked += [
        poisson(chance, name, share / 60, until, by_day(rank / 8))
        for rank, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    asked += [bursts(chance, name, 4 * 3600, until) for name in names[2:6]]
    asked += [
        ping_pong(chance, [names[2], names[4], names[5]], 30.0, start, min(until, start + 3600))
        for start in _every_day(until)
    ]
    return _scenario("mixed", models, asked)


def _every_day(until: float) -> Iterator[float]:
    at = 10 * 3600.0
    while at < until:
        yield at
        at += DAY


def _scenario(name: str, models: tuple[Model, ...], asked: Iterable[Iterable[Request]]) -> Scenario:
    requests = tuple(sorted(request for stream in asked for request in stream))
    return Scenario(name=name, models=models, cards=cards(2), requests=requests)


TRACES: dict[str, Callable[[int, float], Scenario]] = {
    "mixed": mixed,
    "zipf": zipf,
    "bursts": bursty,
    "diurnal": diurnal,
    "pingpong": adversarial,
    "busy": busy,
}

"""Machines and traffic at random, to look for one that breaks a promise; each is a function of its number."""

import random
from collections.abc import Iterator

from tests.simulation.scenario import GIB, Model, Request, Scenario, cards
from worker_manager.contract import Residency

LEVELS = ((), (Residency.ASLEEP_1,), (Residency.ASLEEP_1, Residency.ASLEEP_2))


def scenario(number: int, seconds: float = 300.0) -> Scenario:
    """A machine of one to three cards under pressure, all endpoints of one priority."""
    chance = random.Random(f"scenario {number}")  # noqa: S311 - a simulation, no secret
    gpus = chance.randint(1, 3)
    card = chance.choice([24, 48, 80]) * GIB
    models = tuple(_model(chance, f"m{index}", gpus, card) for index in range(chance.randint(2, 8)))
    asked = sorted(request for model in models for request in _traffic(chance, model, seconds))
    return Scenario(
        name=f"random {number}",
        models=models,
        cards=cards(gpus, card, 256 * GIB),
        requests=tuple(asked),
        sleep_memory_mib=chance.choice([0, 20, 128]) * GIB,
        starvation_seconds=chance.choice([20.0, 60.0]),
        minimum_residency_seconds=chance.choice([0.0, 10.0, 30.0]),
    )


def _model(chance: random.Random, name: str, gpus: int, card: int) -> Model:
    share = chance.choice([0.2, 0.35, 0.5, 0.75, 0.95])
    load = chance.uniform(3, 60)
    return Model(
        name=name,
        gpus=chance.choice([1, 1, 1, gpus]),
        promise_mib=int(card * share),
        whole_card=chance.random() < 0.15,
        load_seconds=load,
        stop_seconds=chance.uniform(0.5, 5),
        per_worker=chance.choice([1, 4, 16]),
        max_workers=chance.choice([1, 1, 2, 3]),
        idle_seconds=chance.choice([20.0, 120.0, 900.0]),
        sleep=chance.choice(LEVELS),
        sleep_after_seconds=chance.choice([5.0, 60.0]),
        first_sleep_seconds=chance.uniform(1, 30),
        sleep_seconds=chance.uniform(0.2, 8),
        wake_seconds=chance.uniform(0.3, 6),
        residue_mib=chance.randint(500, 2500),
        host_mib=int(card * share * 0.7),
    )


def _traffic(chance: random.Random, model: Model, seconds: float) -> Iterator[Request]:
    """From a lone request to more than can be served."""
    gap = chance.choice([0.5, 3.0, 15.0, 60.0, 300.0])
    mean = chance.choice([0.5, 4.0, 15.0])
    pause = chance.choice([0.0, 0.0, 200.0])
    at = chance.uniform(0, gap)
    while at < seconds:
        yield Request(at, model.name, min(60.0, chance.expovariate(1 / mean)))
        at += chance.expovariate(1 / gap)
        if pause and chance.random() < 0.1:
            at += chance.uniform(0, pause)

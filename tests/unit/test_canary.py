"""The canary against a running simulator: what hangs is found, what works is left alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.processes import short_folder
from tests.support.simulated_engine import SimulatedEngine, running_engine
from tests.support.waiting import wait_until
from worker_manager.contract import FailureKind
from worker_manager.engines.canary import Canary, Rhythm, has_worked, is_quiet
from worker_manager.engines.engine_metrics import Load

RHYTHM = Rhythm(interval=0.3, timeout=0.3, tries=2)
HUNG = Simulation(faults=Faults(hang_with_green_health=True))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def canary(engine: SimulatedEngine, route: str = "/v1/completions", rhythm: Rhythm = RHYTHM) -> Canary:
    return Canary(engine.socket, "demo", route, rhythm)


async def test_an_engine_that_generates_nothing_behind_a_green_health_is_found(folder: Path) -> None:
    with running_engine(folder, HUNG) as engine:
        async with asyncio.timeout(20):
            verdict = await canary(engine).watch()
        assert verdict.kind is FailureKind.HUNG
        assert "2 one-token requests in a row" in verdict.message
        assert (await asyncio.to_thread(engine.stats))["paths"]["/v1/completions"] == 2


async def test_a_process_that_says_nothing_at_all_is_told_apart(folder: Path) -> None:
    with running_engine(folder) as engine:
        engine.process.stop()
        async with asyncio.timeout(20):
            verdict = await canary(engine).watch()
    assert verdict.kind is FailureKind.UNREACHABLE
    assert "no connection" in verdict.message


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/embeddings", ""])
async def test_a_healthy_engine_without_traffic_is_asked_again_and_again_and_left_alone(
    folder: Path, route: str
) -> None:
    kind = "embed" if route == "/v1/embeddings" else "generate"
    with running_engine(folder, Simulation(kind=kind)) as engine:
        watching = asyncio.create_task(canary(engine, route, Rhythm(interval=0.3, timeout=10, tries=1)).watch())

        def thrice() -> bool:
            return int(engine.stats()["paths"].get(route or "/health", 0)) >= 3

        await asyncio.to_thread(wait_until, thrice, "three questions")
        assert not watching.done()
        watching.cancel()


def figures(live: int = 0, tokens: float = 5.0, cache: float = 0.1) -> Load:
    return Load(live=live, tokens=tokens, cache=cache)


def test_an_engine_whose_figures_move_is_not_asked() -> None:
    assert has_worked(figures(live=3), figures(live=3, tokens=6.0))
    assert has_worked(figures(live=1), figures(live=1, cache=0.2))  # it reads a long prompt
    assert has_worked(None, figures())
    assert not has_worked(figures(live=3), figures(live=3))
    assert not has_worked(figures(), None)


def test_an_idle_engine_can_wait_for_its_turn_and_a_stuck_or_silent_one_can_not() -> None:
    assert is_quiet(figures())
    assert not is_quiet(figures(live=1))
    assert not is_quiet(None)

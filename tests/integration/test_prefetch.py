"""A real manager reads weights into the page cache for a start that is to come, and stops when it is not."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.machine import Machine, is_running, spec
from tests.support.page_cache import resident, write_cold
from tests.support.processes import short_folder
from tests.support.waiting import wait_until
from worker_manager.contract import DesiredSet, WorkerState
from worker_manager.launchers.base import Unit
from worker_manager.launchers.choice import make_launcher
from worker_manager.prefetch import Prefetch
from worker_manager.settings import Settings

MIB = 72
"""Of weights: above what is worth a reader."""
MOST = 0.9
"""What is in the page cache may leave it at any time."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with short_folder() as folder:
        made = Machine(folder, HOSTLER_PREFETCH_RESERVE_GIB="0.1")
        made.add_model("big")
        made.add_model("tiny")
        yield made
        made.clean_up()


def weights(machine: Machine) -> Path:
    return machine.folder / "models" / "local" / "big" / "model.safetensors"


def readers(machine: Machine) -> list[Path]:
    return list((machine.folder / "run" / "units").glob("read-*.json"))


def want_soon(machine: Machine, generation: int, *models: str) -> None:
    machine.put(DesiredSet(generation=generation, soon=models)).raise_for_status()


def ended(machine: Machine) -> dict[str, Any]:
    """What the manager has logged of the one reader that ended."""
    assert machine.manager is not None
    machine.manager.wait_for_output('"prefetch_ended"', 30)
    (line,) = [line for line in machine.manager.output.splitlines() if '"prefetch_ended"' in line]
    found: dict[str, Any] = json.loads(line)
    return found


def test_weights_are_read_before_the_worker_may_start(machine: Machine) -> None:
    write_cold(weights(machine), MIB)
    machine.start()
    want_soon(machine, 1, "local/tiny", "local/big")
    wait_until(lambda: resident(weights(machine)) > MOST, "the weights are in memory", seconds=30)
    assert (ended(machine)["model"], ended(machine)["read_mib"]) == ("local/big", MIB)
    assert readers(machine) == []


def test_a_worker_on_its_way_up_has_its_weights_read(machine: Machine) -> None:
    write_cold(weights(machine), MIB)
    machine.add_model("big", load_seconds=60)
    machine.start()
    machine.send(spec(model="local/big"))
    wait_until(lambda: resident(weights(machine)) > MOST, "the weights are in memory", seconds=30)
    machine.wait_for(WorkerState.LOADING)


def test_a_reader_ends_when_its_model_is_not_wanted_any_more_also_one_that_an_earlier_manager_began(
    machine: Machine,
) -> None:
    with weights(machine).open("wb") as file:
        file.truncate(2 << 30)  # nothing but holes: to be read, and not to be written
    manager = machine.start()
    want_soon(machine, 1, "local/big")
    (unit,) = wait_until(lambda: readers(machine), "a reader was begun", seconds=30, interval=0.001)
    pid = machine.pid(unit.stem)
    os.kill(pid, signal.SIGSTOP)
    manager.kill()
    machine.start()
    assert is_running(pid)
    want_soon(machine, 2)
    assert ended(machine)["read_mib"] == 0
    assert not is_running(pid)
    assert readers(machine) == []


def test_it_can_be_switched_off_and_leaves_the_reserve_alone(machine: Machine) -> None:
    write_cold(weights(machine), MIB)
    machine.start(HOSTLER_PREFETCH="0")
    machine.put(DesiredSet(generation=1, workers=(spec(),), soon=("local/big",))).raise_for_status()
    machine.wait_for(WorkerState.READY)
    assert readers(machine) == []
    machine.start(HOSTLER_PREFETCH_RESERVE_GIB="1000000")
    want_soon(machine, 2, "local/big")
    assert (ended(machine)["read_mib"], ended(machine)["of_mib"]) == (0, MIB)
    assert resident(weights(machine)) < 0.5


async def test_a_listing_from_before_a_reader_ran_does_not_end_it(machine: Machine) -> None:
    with weights(machine).open("wb") as file:
        file.truncate(1 << 40)  # nothing but holes: more than can be read meanwhile
    launcher = make_launcher(
        "process",
        Settings(models=machine.folder / "models", run=machine.folder / "run"),
        environ=os.environ,
        device=lambda: "cpu",
        gpu_totals=dict,
    )
    looked = asyncio.Event()
    prefetch = Prefetch(
        launcher, models=machine.folder / "models", enabled=True, reserve_mib=100, look_again=looked.set
    )

    async def look(units: list[Unit], *models: str) -> None:
        looked.clear()
        prefetch.look(units, models)
        await asyncio.wait_for(looked.wait(), 30)

    try:
        await look([], "local/big")
        (unit,) = await launcher.units()
        os.kill(machine.pid(unit.id), signal.SIGSTOP)
        await look([msgspec.structs.replace(unit, running=False, never_started=True)], "local/big")
        assert [(one.id, one.running) for one in await launcher.units()] == [(unit.id, True)]
        await look([unit])
        assert await launcher.units() == []
    finally:
        await prefetch.close()
        await launcher.close()

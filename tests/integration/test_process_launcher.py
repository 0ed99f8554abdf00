"""The process launcher with small real programs as engines."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.processes import short_folder
from tests.support.waiting import wait_until_async
from worker_manager.contract import DownloadSpec, WorkerSpec
from worker_manager.launchers import processes
from worker_manager.launchers.base import ImageMissingError, Unit, UnitKind
from worker_manager.launchers.process import ProcessLauncher
from worker_manager.policy import PolicyRefusal
from worker_manager.settings import Settings

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('child', flush=True); time.sleep(600)"])
print("stubborn", flush=True)
time.sleep(600)
"""  # noqa: E501
QUIET = "import time; print('running', flush=True); time.sleep(600)"
TELLING = "import os, json; print(json.dumps(dict(os.environ)), flush=True)"
ENDING = "print('one'); print('two'); raise SystemExit(3)"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        (path / "models" / "local" / "tiny").mkdir(parents=True)
        yield path


@pytest.fixture
async def launchers(folder: Path) -> AsyncIterator["Launchers"]:
    made = Launchers(folder)
    yield made
    await made.end()


class Launchers:
    """Launchers over one run folder, as several managers one after the other would make them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[ProcessLauncher] = []

    def make(self, program: str = QUIET, **change: Any) -> ProcessLauncher:
        settings = Settings(
            models=self.folder / "models",
            run=self.folder / "run",
            cache=self.folder / "cache",
            vllm_command=(sys.executable, "-c", program),
        )
        launcher = ProcessLauncher(
            msgspec.structs.replace(settings, **change),
            device=lambda: "cuda",
            environ={"PATH": os.environ["PATH"], "SECRET": "s", "HF_TOKEN": "t"},
            gpu_totals=lambda: {"GPU-0": 1000},
            job_command=lambda spec, _models: ("-c", f"print('job of', {spec.model!r})"),
            job_env={"HF_TOKEN": "t"},
        )
        self._made.append(launcher)
        return launcher

    async def end(self) -> None:
        last = self.make()
        for unit in await last.units():
            await last.stop(unit.id, 0)
        for launcher in self._made:
            await launcher.close()


def spec(worker: str = "w1", **change: Any) -> WorkerSpec:
    base = WorkerSpec(id=worker, endpoint="tiny", model="local/tiny", served_names=("tiny",))
    return msgspec.structs.replace(base, **change)


async def only(launcher: ProcessLauncher) -> Unit:
    (unit,) = await launcher.units()
    return unit


async def wait_for_line(launcher: ProcessLauncher, text: str, unit: str = "w1") -> None:
    async def printed() -> bool:
        return any(text in line for line in await launcher.log(unit, 50))

    was_printed: bool = await wait_until_async(printed, f"{text!r} printed", interval=0.02)
    assert was_printed


async def wait_for_end(launcher: ProcessLauncher) -> Unit:
    async def ended() -> Unit | None:
        unit = await only(launcher)
        return None if unit.running else unit

    unit: Unit | None = await wait_until_async(ended, "the unit has ended", interval=0.02)
    assert unit is not None
    return unit


async def test_a_unit_is_read_back_from_its_file_by_another_manager(launchers: Launchers) -> None:
    await launchers.make().start_worker(spec(), 7)
    found = await only(launchers.make())
    assert (found.worker, found.generation, found.running, found.kind) == (spec(), 7, True, UnitKind.WORKER)


async def test_a_stop_ends_the_whole_group_even_if_nobody_listens_to_term(launchers: Launchers) -> None:
    launcher = launchers.make(STUBBORN)
    await launcher.start_worker(spec(gpus=("GPU-0",)), 1)
    await wait_for_line(launcher, "child")
    group = (await only(launcher)).pids
    assert len(group) == 2
    await launcher.stop("w1", 0.2)
    assert not any(processes.start_time(pid) is not None and processes.members(pid) for pid in group)
    assert not (await only(launcher)).running
    assert await launcher.log("w1", 10)
    await launcher.remove("w1")
    assert await launcher.units() == []


async def test_an_adopted_process_can_be_stopped(launchers: Launchers) -> None:
    await launchers.make().start_worker(spec(), 1)
    other = launchers.make()
    await other.stop("w1", 5)
    assert not (await only(other)).running


async def test_an_end_is_told_at_once_also_by_an_adopted_process(launchers: Launchers) -> None:
    first = launchers.make()
    await first.start_worker(spec(gpus=("GPU-0",)), 1)
    other = launchers.make()
    pid = (await only(other)).pids[0]
    feed = other.events()
    os.kill(pid, signal.SIGKILL)
    event = await asyncio.wait_for(anext(feed), 1.0)
    assert event.id == "w1"
    assert not (await only(other)).running


async def test_the_exit_code_and_the_log_of_a_child_are_kept(launchers: Launchers) -> None:
    launcher = launchers.make(ENDING)
    await launcher.start_worker(spec(), 1)
    unit = await wait_for_end(launcher)
    assert unit.exit_code == 3
    assert await launcher.log("w1", 10) == ("one", "two")
    assert await launcher.log("w1", 1) == ("two",)


async def test_an_engine_gets_a_closed_list_of_variables(launchers: Launchers) -> None:
    launcher = launchers.make(TELLING, engine_env={"EXTRA": "1"})
    await launcher.start_worker(spec(gpus=("GPU-0",)), 1)
    await wait_for_end(launcher)
    env = msgspec.json.decode((await launcher.log("w1", 1))[0])
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["EXTRA"] == "1"
    assert not {"SECRET", "HF_TOKEN"} & env.keys()
    for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert Path(env[name]).is_relative_to(launchers.folder / "cache"), "the next start finds what this one compiled"


async def test_starting_what_runs_already_changes_nothing(launchers: Launchers) -> None:
    launcher = launchers.make()
    await launcher.start_worker(spec(gpus=("GPU-0",)), 1)
    before = (await only(launcher)).pids
    await launcher.start_worker(spec(gpus=("GPU-0",)), 1)
    assert (await only(launcher)).pids == before


async def test_a_corrupt_unit_file_is_a_unit_without_description(launchers: Launchers) -> None:
    launcher = launchers.make()
    await launcher.start_worker(spec(), 1)
    (launchers.folder / "run" / "units" / "broken.json").write_text("{")
    found = {unit.id: unit.worker for unit in await launcher.units()}
    assert found == {"broken": None, "w1": spec()}
    await launcher.stop("broken", 1)
    await launcher.remove("broken")
    assert await only(launcher)


async def test_a_job_is_started_with_its_own_environment(launchers: Launchers) -> None:
    launcher = launchers.make()
    await launcher.start_download("download-1", DownloadSpec(model="org/name"))
    await wait_for_line(launcher, "job of org/name", "download-1")
    unit = await wait_for_end(launcher)
    assert (unit.kind, unit.download, unit.exit_code) == (UnitKind.JOB, DownloadSpec(model="org/name"), 0)


async def test_a_program_that_is_not_there_is_told_as_such(launchers: Launchers) -> None:
    launcher = launchers.make(vllm_command=("no-such-program",))
    assert await launcher.images() == ()
    with pytest.raises(ImageMissingError, match="HOSTLER_VLLM_COMMAND"):
        await launcher.start_worker(spec(), 1)
    assert await launcher.units() == []


async def test_the_boundary_holds_without_docker_too(launchers: Launchers) -> None:
    launcher = launchers.make()
    (launchers.folder / "models" / "local" / "escape").symlink_to("/etc")
    for refused in (
        spec(model="local/escape"),
        spec(model="local/absent"),
        spec(gpus=("GPU-9",)),
        spec(args={"trust-remote-code": True}),
        spec(image="some/image:1"),
    ):
        with pytest.raises(PolicyRefusal):
            await launcher.start_worker(refused, 1)
    assert await launcher.units() == []


async def test_a_manager_that_dies_before_the_unit_is_written_leaves_no_process(launchers: Launchers) -> None:
    launcher = launchers.make()
    units = launchers.folder / "run" / "units"
    units.rmdir()
    units.write_text("in the way")
    with pytest.raises(Exception, match="could not be started"):
        await launcher.start_worker(spec(), 1)
    units.unlink()
    units.mkdir()
    assert await launcher.log("w1", 10) == ()
    assert await launcher.units() == []

"""The Docker launcher against a real Docker Engine, with the engine simulator as the engine's image."""

import asyncio
import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import msgspec
import pytest
from docker.models.containers import Container

from tests.support.battery import Tell, size
from tests.support.processes import short_folder
from tests.support.waiting import wait_until_async
from worker_manager.contract import WorkerSpec
from worker_manager.engines import readiness
from worker_manager.launchers.base import ImageMissingError, LauncherError, LauncherUnavailableError, Unit
from worker_manager.launchers.docker import DockerLauncher, ping
from worker_manager.policy import PolicyRefusal
from worker_manager.settings import Settings

pytestmark = pytest.mark.docker

IMAGE = "hostler/engine-simulator:latest"
DOCKER_HOST = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
READY_SECONDS = 60.0
CYCLES = size(10, 100)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        model = path / "models" / "local" / "tiny"
        model.mkdir(parents=True)
        (model / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 2048}')
        (model / "simulator.json").write_text("{}")
        yield path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(
        docker_host=DOCKER_HOST,
        instance=f"test-{uuid.uuid4().hex[:8]}",
        models=folder / "models",
        run=folder / "run",
        cache=folder / "cache",
        engine_image=IMAGE,
        stop_seconds=5,
        engine_memory_gib=1,
    )


@pytest.fixture
async def launcher(settings: Settings) -> AsyncIterator[DockerLauncher]:
    made = make(settings)
    yield made
    for unit in await made.units():
        await made.stop(unit.id, 0)
        await made.remove(unit.id)
    await made.close()


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=DOCKER_HOST, timeout=30)
    with contextlib.closing(client):
        yield client


def make(settings: Settings) -> DockerLauncher:
    return DockerLauncher(
        settings,
        device=lambda: "cpu",
        gpu_totals=dict,
        job_command=lambda _spec, _models: ("-m", "worker_manager.jobs.download"),
        job_env={},
    )


def spec(worker: str = "w1", **change: Any) -> WorkerSpec:
    base = WorkerSpec(id=worker, endpoint="tiny", model="local/tiny", served_names=("tiny",))
    return msgspec.structs.replace(base, **change)


async def wait_ready(settings: Settings, worker: str = "w1") -> None:
    async def ready() -> bool:
        return (await readiness.probe(settings.engines / worker / "engine.sock", "tiny")).ready

    is_ready: bool = await wait_until_async(ready, f"{worker} ready", seconds=READY_SECONDS, interval=0.1)
    assert is_ready


async def unit_of(launcher: DockerLauncher, worker: str = "w1") -> Unit | None:
    return next((unit for unit in await launcher.units() if unit.id == worker), None)


async def container_of(engine: docker.DockerClient, settings: Settings, worker: str = "w1") -> Container:
    return await asyncio.to_thread(engine.containers.get, f"{settings.instance}-{worker}")


async def test_an_engine_serves_and_its_container_follows_every_rule(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    await launcher.start_worker(spec(), 3)
    await wait_ready(settings)
    facts = (await container_of(engine, settings)).attrs
    host = facts["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert set(facts["NetworkSettings"]["Networks"]) <= {"none"}
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["IpcMode"], host["PidMode"], host["ReadonlyRootfs"]) == ("private", "", True)
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (1 << 30, 1 << 30, 4096)
    assert host["ShmSize"] == 1 << 30
    assert host["RestartPolicy"]["Name"] == "no"
    assert not host["AutoRemove"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["Init"] is True
    assert facts["Config"]["User"] not in ("", "0", "root", "0:0")
    writable = {mount["Destination"]: mount["RW"] for mount in facts["Mounts"]}
    assert writable == {"/models/local/tiny": False, "/run/engine": True, "/cache": True}


async def test_inside_an_engine_nothing_can_be_written_but_its_own_folders(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    await launcher.start_worker(spec(), 1)
    await wait_ready(settings)
    container = await container_of(engine, settings)

    async def works(command: str) -> bool:
        return bool((await asyncio.to_thread(container.exec_run, ["/bin/sh", "-c", command])).exit_code == 0)

    assert not await works("touch /anything")
    assert not await works("touch /models/local/tiny/anything")
    assert await works("touch /tmp/scratch /cache/kernel /run/engine/other")
    assert not await works("test -e /var/run/docker.sock")
    assert not await works("ls /sys/class/net | grep -v '^lo$'")
    assert await works("grep -q 'CapEff:.0000000000000000' /proc/1/status")


async def test_each_engine_sees_its_own_socket_folder_alone(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    await launcher.start_worker(spec("w1"), 1)
    await launcher.start_worker(spec("w2"), 1)
    await wait_ready(settings, "w1")
    await wait_ready(settings, "w2")
    for worker in ("w1", "w2"):
        mounts = (await container_of(engine, settings, worker)).attrs["Mounts"]
        assert [mount["Source"] for mount in mounts if mount["Destination"] == "/run/engine"] == [
            str((settings.engines / worker).resolve())
        ]


async def test_the_engines_socket_is_closed_to_others(launcher: DockerLauncher, settings: Settings) -> None:
    await launcher.start_worker(spec(), 1)
    await wait_ready(settings)
    assert (settings.engines / "w1" / "engine.sock").stat().st_mode & 0o007 == 0
    assert (settings.engines / "w1").stat().st_mode & 0o777 == 0o770


async def test_a_unit_is_read_back_from_its_labels(launcher: DockerLauncher, settings: Settings) -> None:
    wanted = spec(max_model_len=64, args={"enforce-eager": True})
    await launcher.start_worker(wanted, 5, length=48)
    again = make(settings)
    try:
        found = await unit_of(again)
    finally:
        await again.close()
    assert found is not None
    assert (found.worker, found.generation, found.length, found.running) == (wanted, 5, 48, True)


async def test_a_stop_is_proven_and_frees_the_name_every_time(launcher: DockerLauncher, record_property: Tell) -> None:
    for generation in range(1, CYCLES + 1):
        await launcher.start_worker(spec(), generation)
        await launcher.stop("w1", 0)
        stopped = await unit_of(launcher)
        assert stopped is not None
        assert not stopped.running
        await launcher.remove("w1")
        assert await unit_of(launcher) is None
    record_property("starts and stops without a conflict of names", f"{CYCLES} of {CYCLES}")


async def test_the_log_and_the_exit_code_stay_until_the_container_is_removed(
    launcher: DockerLauncher, folder: Path
) -> None:
    orders = {"faults": {"crash_at_load": "kv_cache_too_small"}}
    (folder / "models" / "local" / "tiny" / "simulator.json").write_text(json.dumps(orders))
    await launcher.start_worker(spec(), 1)

    async def ended() -> Unit | None:
        unit = await unit_of(launcher)
        return unit if unit is not None and not unit.running else None

    unit: Unit | None = await wait_until_async(ended, "the engine has ended", seconds=READY_SECONDS, interval=0.1)
    assert unit is not None
    assert unit.exit_code == 1
    assert await launcher.log("w1", 100)
    await launcher.remove("w1")
    assert await launcher.log("w1", 100) == ()


async def test_starting_what_runs_already_changes_nothing(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    await launcher.start_worker(spec(), 1)
    before = (await container_of(engine, settings)).id
    await launcher.start_worker(spec(), 2)
    assert (await container_of(engine, settings)).id == before


async def test_a_start_that_was_cut_between_create_and_start_is_finished_by_the_next(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    labels = {"dev.hostler.instance": settings.instance, "dev.hostler.kind": "worker", "dev.hostler.id": "w1"}
    name = f"{settings.instance}-w1"
    await asyncio.to_thread(engine.containers.create, IMAGE, name=name, labels=labels)
    found = await unit_of(launcher)
    assert found is not None
    assert found.never_started
    await launcher.start_worker(spec(), 1)
    await wait_ready(settings)


async def test_a_container_of_others_is_never_touched(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    foreign = await asyncio.to_thread(
        engine.containers.create, IMAGE, name=f"{settings.instance}-w1", labels={"dev.hostler.instance": "another"}
    )
    try:
        assert await launcher.units() == []
        await launcher.stop("w1", 0)
        await launcher.remove("w1")
        with pytest.raises(LauncherError, match="not Hostler's"):
            await launcher.start_worker(spec(), 1)
        await asyncio.to_thread(foreign.reload)
    finally:
        await asyncio.to_thread(foreign.remove, force=True)


async def test_unreadable_labels_harm_no_other_unit(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    labels = {"dev.hostler.instance": settings.instance, "dev.hostler.kind": "worker", "dev.hostler.spec": "{"}
    name = f"{settings.instance}-broken"
    await asyncio.to_thread(engine.containers.create, IMAGE, name=name, labels=labels)
    await launcher.start_worker(spec(), 1)
    found = {unit.id: unit.worker for unit in await launcher.units()}
    assert found == {"broken": None, "w1": spec()}


async def test_a_container_removed_behind_our_back_is_noticed_within_a_second(
    launcher: DockerLauncher, settings: Settings, engine: docker.DockerClient
) -> None:
    await launcher.start_worker(spec(), 1)
    feed = launcher.events()
    subscribed = await asyncio.wait_for(anext(feed), READY_SECONDS)
    assert subscribed.id == ""
    container = await container_of(engine, settings)
    started = time.monotonic()
    removal = asyncio.create_task(asyncio.to_thread(container.remove, force=True))
    async with asyncio.timeout(READY_SECONDS):
        async for event in feed:
            if event.id == "w1" and event.what in ("die", "destroy", "kill"):
                break
    assert time.monotonic() - started < 1.0
    await removal


async def test_what_may_not_run_leaves_nothing_behind(launcher: DockerLauncher) -> None:
    with pytest.raises(PolicyRefusal):
        await launcher.start_worker(spec(image="python:3.13-slim"), 1)
    with pytest.raises(PolicyRefusal, match="does not exist"):
        await launcher.start_worker(spec(model="local/absent"), 1)
    assert await launcher.units() == []


async def test_a_link_out_of_the_models_folder_is_not_mounted(launcher: DockerLauncher, folder: Path) -> None:
    (folder / "models" / "local" / "escape").symlink_to("/etc")
    with pytest.raises(PolicyRefusal, match="link out"):
        await launcher.start_worker(spec(model="local/escape"), 1)


async def test_an_image_that_is_not_there_is_told_as_such(settings: Settings) -> None:
    launcher = make(msgspec.structs.replace(settings, engine_image="hostler/no-such-image:1"))
    try:
        assert await launcher.images() == ()
        with pytest.raises(ImageMissingError, match="no-such-image"):
            await launcher.start_worker(spec(), 1)
    finally:
        await launcher.close()


async def test_present_images_of_the_allow_list_are_named(launcher: DockerLauncher) -> None:
    assert await launcher.images() == (IMAGE,)


# a Docker Engine that is away, or hangs


async def test_a_docker_engine_that_is_away_is_told_at_once(settings: Settings, folder: Path) -> None:
    launcher = make(msgspec.structs.replace(settings, docker_host=f"unix://{folder}/none.sock"))
    try:
        with pytest.raises(LauncherUnavailableError):
            await launcher.units()
        with pytest.raises(LauncherUnavailableError):
            await ping(f"unix://{folder}/none.sock")
    finally:
        await launcher.close()


@pytest.fixture
def hung_docker(folder: Path) -> Iterator[str]:
    """A socket that takes connections and never answers."""
    path = folder / "hung.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield f"unix://{path}"


@pytest.mark.parametrize(
    "call",
    [
        lambda launcher: launcher.units(),
        lambda launcher: launcher.images(),
        lambda launcher: launcher.log("w1", 1),
        lambda launcher: launcher.start_worker(spec(), 1),
    ],
)
async def test_every_call_on_a_hung_docker_engine_returns_within_its_limit(
    settings: Settings, hung_docker: str, call: Callable[[DockerLauncher], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_manager.launchers.docker.QUICK_SECONDS", 1)
    launcher = make(msgspec.structs.replace(settings, docker_host=hung_docker))
    try:
        async with asyncio.timeout(10):
            with pytest.raises(LauncherUnavailableError):
                await call(launcher)
    finally:
        await launcher.close()


async def test_the_engine_answers_over_its_socket_without_any_network(
    launcher: DockerLauncher, settings: Settings
) -> None:
    await launcher.start_worker(spec(), 1)
    await wait_ready(settings)
    transport = httpx.AsyncHTTPTransport(uds=str(settings.engines / "w1" / "engine.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=20) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]

"""Downloads through a real manager, with the real hub client and the tests' own hub."""

import os
import signal
from collections.abc import Iterator

import msgspec
import pytest

from tests.support.hub_server import HubServer, Repository
from tests.support.machine import MANAGER_SECONDS, Machine, spec
from tests.support.processes import short_folder
from worker_manager.contract import Download, DownloadState, FailureKind, WorkerState
from worker_manager.downloads import RUNNING_MAX

FILES = {
    "config.json": b'{"model_type": "llama", "max_position_embeddings": 2048}',
    "tokenizer.json": b"{}",
    "model.safetensors": os.urandom(1 << 20),
}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    many = [Repository(f"org/{number}", FILES) for number in range(RUNNING_MAX + 1)]
    with HubServer([Repository("org/tiny", FILES), Repository("org/gated", FILES, token="t"), *many]) as server:
        yield server


@pytest.fixture
def machine(hub: HubServer) -> Iterator[Machine]:
    with short_folder() as folder:
        (folder / "models").mkdir()
        host = Machine(folder, HF_ENDPOINT=hub.url, HOSTLER_DISK_RESERVE_GIB="0.1", NO_PROXY="*", no_proxy="*")
        host.start()
        yield host
        host.clean_up()


def start(machine: Machine, model: str = "org/tiny") -> Download:
    answer = machine.client.post("/downloads", json={"model": model})
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Download)


def test_a_model_is_downloaded_with_exact_bytes_and_can_be_served(machine: Machine) -> None:
    done = machine.wait_for_download(start(machine).id, DownloadState.DONE)
    assert (done.bytes_done, done.bytes_total) == (TOTAL, TOTAL)
    assert done.path is not None
    assert (machine.folder / "models" / done.path / "model.safetensors").stat().st_size == 1 << 20
    machine.send(spec(model=done.path))
    machine.wait_for(WorkerState.READY)


def test_the_same_download_again_answers_the_running_one(machine: Machine, hub: HubServer) -> None:
    hub.faults.hold_after_bytes = 1000
    first, second = start(machine), start(machine)
    assert (first.id, first.since) == (second.id, second.since)


def test_a_gated_model_is_told_as_such(machine: Machine) -> None:
    failed = machine.wait_for_download(start(machine, "org/gated").id, DownloadState.FAILED)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.MODEL_GATED
    assert failed.failure.hint


def test_a_missing_model_is_told_as_such_and_can_be_tried_again(machine: Machine) -> None:
    for _ in range(2):
        failed = machine.wait_for_download(start(machine, "org/absent").id, DownloadState.FAILED)
        assert failed.failure is not None
        assert failed.failure.kind is FailureKind.MODEL_MISSING


def test_a_finished_download_is_known_to_the_next_manager(machine: Machine) -> None:
    done = machine.wait_for_download(start(machine).id, DownloadState.DONE)
    assert machine.manager is not None
    machine.manager.kill()
    machine.start()
    again = machine.wait_for_download(done.id, DownloadState.DONE)
    assert (again.path, again.bytes_done) == (done.path, TOTAL)
    assert machine.client.delete(f"/downloads/{done.id}").status_code == 200
    assert machine.download(done.id) is None


def test_a_job_that_is_killed_is_told_with_what_to_do(machine: Machine, hub: HubServer) -> None:
    hub.faults.hold_after_bytes = 1000
    job = start(machine).id
    assert hub.held.wait(MANAGER_SECONDS)
    os.kill(machine.pid(job), signal.SIGKILL)
    failed = machine.wait_for_download(job, DownloadState.FAILED)
    assert failed.failure is not None
    assert "start it again" in failed.failure.hint


def test_a_running_download_can_be_cancelled(machine: Machine, hub: HubServer) -> None:
    hub.faults.hold_after_bytes = 1000
    job = start(machine).id
    assert hub.held.wait(MANAGER_SECONDS)
    answer = machine.client.delete(f"/downloads/{job}")
    assert msgspec.json.decode(answer.content, type=Download).state is DownloadState.CANCELLED
    assert machine.wait_for_download(job, DownloadState.CANCELLED)


def test_whoever_holds_the_socket_runs_so_many_downloads_and_no_more(machine: Machine, hub: HubServer) -> None:
    hub.faults.hold_after_bytes = 1000
    jobs = [start(machine, f"org/{number}") for number in range(RUNNING_MAX)]
    refused = machine.client.post("/downloads", json={"model": f"org/{RUNNING_MAX}"})
    assert refused.status_code == 409, refused.text
    assert f"{RUNNING_MAX} downloads run already" in refused.text
    assert len(machine.client.get("/downloads").json()) == RUNNING_MAX
    assert start(machine, "org/0").id == jobs[0].id, "one that runs is no other"
    assert machine.client.delete(f"/downloads/{jobs[0].id}").status_code == 200
    jobs[0] = start(machine, f"org/{RUNNING_MAX}")
    assert jobs[0].state is DownloadState.RUNNING, "there is room again"
    for job in jobs:  # at once: stopped one after the other they take seconds
        os.kill(machine.pid(job.id), signal.SIGKILL)

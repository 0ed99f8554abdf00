"""A model comes from the hub in a container of its own, which has a network; the engine that serves it has none."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.compose import ComposeStack, compose_stack, docker
from tests.support.events import ALL, listening
from tests.support.hub_server import HubServer, Repository
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

MODEL = "tiny-labs/tiny-1m"
WEIGHTS = bytes(range(256)) * 16_384
HELD_BYTES = 1 << 20


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A hub on the address under which containers of Docker's default network reach this machine."""
    files = {
        "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode(),
        "model.safetensors": WEIGHTS,
        "README.md": b"# tiny",
    }
    networks = json.loads(docker("network", "inspect", "bridge"))
    gateway = networks[0]["IPAM"]["Config"][0]["Gateway"]
    try:
        server = HubServer([Repository(MODEL, files)], host=gateway)
    except OSError as error:
        pytest.skip(f"this machine is not its containers' gateway {gateway}: {error}")
    with server:
        yield server


@pytest.fixture(scope="module")
def stack(hub: HubServer) -> Iterator[ComposeStack]:
    with compose_stack(HF_ENDPOINT=hub.url, HOSTLER_DISK_RESERVE_GIB="0.1", HOSTLER_STOP_SECONDS="5") as found:
        yield found


def jobs(stack: ComposeStack) -> list[dict[str, Any]]:
    """`docker inspect` of every download job that has not ended."""
    found = [one for one in stack.project.workers() if one["Config"]["Labels"]["dev.hostler.kind"] == "job"]
    return [one for one in found if one["State"]["Running"]]


def downloads(stack: ComposeStack, model: str) -> list[dict[str, Any]]:
    """What is told of one model's downloads; the tests of this file share a gateway and run in any order."""
    return [one for one in stack.client.get("/api/downloads").json() if one["model"] == model]


def test_a_hub_model_is_downloaded_by_a_job_and_served_by_an_engine_without_network(
    stack: ComposeStack, hub: HubServer
) -> None:
    hub.faults.hold_after_bytes = HELD_BYTES
    created = stack.register("tiny", MODEL)
    assert created["status"]["state"] in {"downloading", "cold"}
    if not downloads(stack, MODEL):
        assert stack.client.post("/api/downloads", json={"model": MODEL}).status_code == 202
    with contextlib.ExitStack() as released:
        released.callback(hub.release.set)
        wait_until(
            lambda: [one for one in downloads(stack, MODEL) if one["bytes_total"] and one["bytes_done"] > 0],
            "progress is shown",
            seconds=60,
            interval=0.1,
        )
        (download,) = downloads(stack, MODEL)
        assert (download["model"], download["state"]) == (MODEL, "running")
        assert 0 < download["bytes_done"] < download["bytes_total"]
        assert download["bytes_total"] >= len(WEIGHTS)
        (job,) = jobs(stack)
    assert job["HostConfig"]["NetworkMode"] in {"bridge", "default"}
    assert job["HostConfig"]["CapDrop"] == ["ALL"]
    assert job["HostConfig"]["ReadonlyRootfs"] is True
    assert [mount["Destination"] for mount in job["Mounts"]] == ["/models"]
    wait_until(lambda: downloads(stack, MODEL)[0]["state"] == "done", "the download is done", seconds=30, interval=0.1)
    (done,) = downloads(stack, MODEL)
    assert done["bytes_done"] == done["bytes_total"]
    assert (stack.models / done["path"] / "model.safetensors").read_bytes() == WEIGHTS
    answer = stack.ask("tiny", max_tokens=4)
    assert answer.status_code == 200, answer.text
    with listening(stack, last=ALL) as listener:
        for told in (
            {"kind": "download", "state": "running"},
            {"kind": "endpoint", "state": "downloading"},
            {"kind": "download", "state": "done", "bytes_done": done["bytes_done"]},
            {"kind": "endpoint", "state": "hot"},
        ):
            assert listener.until(**told)
    engine = stack.project.engines()[answer.headers["x-hostler-worker"]]
    assert engine["HostConfig"]["NetworkMode"] == "none"
    assert [mount["RW"] for mount in engine["Mounts"] if mount["Destination"].startswith("/models/")] == [False]


def test_a_model_that_the_hub_does_not_have_fails_with_a_reason(stack: ComposeStack) -> None:
    assert stack.client.post("/api/downloads", json={"model": "tiny-labs/absent"}).status_code == 202

    def ended() -> dict[str, Any] | None:
        return next((one for one in downloads(stack, "tiny-labs/absent") if one["failure"]), None)

    failed = wait_until(ended, "the failure is told", seconds=60, interval=0.1)
    assert failed is not None
    assert failed["state"] == "failed"
    assert failed["failure"]["kind"] in {"model_missing", "model_gated"}
    assert failed["failure"]["hint"]

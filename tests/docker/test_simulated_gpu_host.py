"""The hook stand-in under a real Docker Engine: a container that asks for a GPU gets it, and no other does."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from docker.errors import APIError
from docker.models.containers import Container
from docker.types import DeviceRequest

from tests.support.processes import REPOSITORY, accepts_connections, short_folder
from tests.support.simulated_engine import model_folder
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SYSTEM_FOLDER, SimulatedHost, cards

pytestmark = pytest.mark.docker

IMAGE = "hostler/engine-simulator:latest"
HOOK = Path("/usr/local/bin/nvidia-container-runtime-hook")
CLIENT_SECONDS = 30
SERVE_SECONDS = 30.0
CARDS = cards(2)
FIRST, SECOND = CARDS[0].uuid, CARDS[1].uuid
LOOK = """
import ctypes, os
print("cards", os.environ.get("NVIDIA_VISIBLE_DEVICES"), os.path.isdir("/dev/hostler-simulated-gpus"))
nvml = ctypes.CDLL("libnvidia-ml.so.1")
count, card, uuid = ctypes.c_uint(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
assert nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(card)) == 0
assert nvml.nvmlDeviceGetUUID(card, uuid, 96) == 0
print(count.value, uuid.value.decode())
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    stand_in = (REPOSITORY / "tests" / "testbed" / "nvidia_hook_stand_in").read_bytes()
    if os.geteuid() != 0 or not HOOK.is_file() or HOOK.read_bytes() != stand_in:
        pytest.skip("this machine is no simulated GPU host: run tests/testbed/simulated_gpus.sh as root")
    client = docker.from_env(timeout=CLIENT_SECONDS)
    yield client
    client.close()


@pytest.fixture
def host(engine: docker.DockerClient) -> SimulatedHost:
    assert engine.ping()
    return SimulatedHost.create(SYSTEM_FOLDER, CARDS)


@contextlib.contextmanager
def container(engine: docker.DockerClient, command: list[str], gpus: list[str], **options: Any) -> Iterator[Container]:
    """A container confined as an engine is; removed at the end."""
    requests = [DeviceRequest(driver="nvidia", device_ids=gpus, capabilities=[["gpu"]])] if gpus else []
    made = engine.containers.create(
        IMAGE,
        command,
        name=f"simulated-gpus-{uuid.uuid4().hex[:8]}",
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        user="10001:10001",
        device_requests=requests,
        **options,
    )
    try:
        made.start()
        yield made
    finally:
        made.remove(force=True)


def look(engine: docker.DockerClient, *gpus: str) -> tuple[int, str]:
    entrypoint = ["/opt/venv/bin/python", "-c"]
    with container(engine, [LOOK], list(gpus), entrypoint=entrypoint) as made:
        status = int(made.wait(timeout=CLIENT_SECONDS)["StatusCode"])
        return status, made.logs().decode()


def test_a_container_sees_the_card_it_asked_for_and_no_other(host: SimulatedHost, engine: docker.DockerClient) -> None:
    assert host.live_claims() == []
    assert look(engine, SECOND) == (0, f"cards {SECOND} True\n1 {SECOND}\n")


def test_a_container_that_asks_for_no_gpu_gets_nothing(host: SimulatedHost, engine: docker.DockerClient) -> None:
    assert host.live_claims() == []
    status, output = look(engine)
    assert status == 1
    assert output.startswith("cards None False\n")
    assert "cannot open shared object file" in output


def test_a_card_that_does_not_exist_is_refused_in_nvidias_words(
    host: SimulatedHost, engine: docker.DockerClient
) -> None:
    assert host.live_claims() == []
    with pytest.raises(APIError, match="device error: GPU-none: unknown device"):
        look(engine, "GPU-none")


def test_an_engine_in_a_container_holds_memory_until_it_ends(host: SimulatedHost, engine: docker.DockerClient) -> None:
    with short_folder() as folder:
        folder.chmod(0o777)  # the engine's user makes its socket here
        model = model_folder(folder / "model")
        mounts = {str(folder): {"bind": "/run/engine"}, str(model): {"bind": "/models/x", "mode": "ro"}}
        command = ["/models/x", "--uds", "/run/engine/s", "--served-model-name", "demo"]
        share = ["--gpu-memory-utilization", "0.5"]
        with container(engine, [*command, *share], [FIRST], volumes=mounts) as made:
            wait_until(lambda: accepts_connections(folder / "s"), "the engine's socket", seconds=SERVE_SECONDS)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "s"))) as client:
                asked = {"model": "demo", "prompt": "Once", "max_tokens": 3}
                answer = client.post("http://engine/v1/completions", json=asked).json()
            assert answer["usage"]["completion_tokens"] == 3
            made.reload()
            claims = host.live_claims()
            assert [(claim.uuid, claim.memory_mib) for claim in claims] == [(FIRST, 12_288)]
            assert claims[0].pid == made.attrs["State"]["Pid"]
        assert host.live_claims() == []

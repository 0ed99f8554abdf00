"""What compose.yaml promises: read from the files as compose understands them, then from living containers."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.compose import ROOT, ComposeProject, project
from tests.support.page_cache import resident, write_cold
from tests.support.simulated_engine import model_folder
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SYSTEM_FOLDER, SimulatedHost, cards

SOCKET = Path("/var/run/docker.sock")
HOOK = Path("/usr/local/bin/nvidia-container-runtime-hook")
READY_SECONDS = 60
BOTH = pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])


@pytest.fixture
def services(tmp_path: Path, gpu: bool) -> dict[str, Any]:  # noqa: FBT001 - a parameter of the test
    return ComposeProject(tmp_path, gpu=gpu).config()


def sources(service: dict[str, Any]) -> list[str]:
    """What a service mounts."""
    return [volume["source"] for volume in service["volumes"]]


@BOTH
def test_only_the_manager_has_the_docker_socket(services: dict[str, Any]) -> None:
    assert not [source for source in sources(services["gateway"]) if "docker" in source]
    assert str(SOCKET) in sources(services["worker_manager"])


@BOTH
def test_only_the_gateway_publishes_a_port_and_only_on_loopback(services: dict[str, Any]) -> None:
    assert [port["host_ip"] for port in services["gateway"]["ports"]] == ["127.0.0.1"]
    assert "ports" not in services["worker_manager"]
    assert services["worker_manager"]["network_mode"] == "none"


@BOTH
@pytest.mark.parametrize("service", ["gateway", "worker_manager"])
def test_every_service_is_fenced_in(services: dict[str, Any], service: str) -> None:
    found = services[service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "cap_add" not in found
    assert "privileged" not in found
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert int(found["pids_limit"]) > 0
    assert int(found["mem_limit"]) > 0
    assert found["logging"]["options"]["max-size"]
    assert found["user"].endswith(":10001")


@BOTH
def test_the_gateway_never_runs_as_root_and_only_reads_models_and_sockets(services: dict[str, Any]) -> None:
    assert services["gateway"]["user"] == "10001:10001"
    written = [v["target"] for v in services["gateway"]["volumes"] if not v.get("read_only")]
    assert written == ["/data"]


def test_the_gpu_file_gives_the_manager_a_look_at_the_gpus_and_nothing_to_the_gateway(tmp_path: Path) -> None:
    services = ComposeProject(tmp_path, gpu=True).config()
    devices = services["worker_manager"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["utility"], "driver": "nvidia", "count": -1}]
    assert services["worker_manager"]["environment"]["HOSTLER_DEVICE"] == "cuda"
    assert "deploy" not in services["gateway"]


def test_the_gateway_has_longer_to_stop_than_its_requests_to_finish(tmp_path: Path) -> None:
    grace = ComposeProject(tmp_path).config()["gateway"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > 30


def test_without_a_key_compose_says_what_to_do() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
    command = ["docker", "compose", "--env-file", os.devnull, "config"]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "HOSTLER_ADMIN_KEY" in done.stderr
    assert "scripts/up" in done.stderr


def manager_users() -> dict[str, dict[str, str]]:
    """The two ways for the manager to open Docker's socket: as its owner without powers, or by its group."""
    ways = {"plain": dict[str, str]()}
    facts = SOCKET.stat() if SOCKET.exists() else None
    if facts and stat.S_IMODE(facts.st_mode) & 0o060 == 0o060:
        ways["as scripts/up sets it"] = {"HOSTLER_MANAGER_UID": "10001", "DOCKER_GID": str(facts.st_gid)}
    return ways


def ready(found: ComposeProject) -> bool:
    try:
        return httpx.get(f"{found.url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def wait_ready(found: ComposeProject) -> None:
    try:
        wait_until(lambda: ready(found), "readiness", seconds=READY_SECONDS, interval=0.1)
    except AssertionError as missed:
        raise AssertionError(f"{missed}\n{found.logs()}") from missed


@pytest.fixture(scope="module", params=list(manager_users().values()), ids=list(manager_users()))
def live(request: pytest.FixtureRequest) -> Iterator[ComposeProject]:
    """The whole project, up and ready."""
    with project(**request.param) as found:
        wait_ready(found)
        yield found


def test_the_living_gateway_has_no_docker_socket_and_no_power(live: ComposeProject) -> None:
    found = live.container("gateway")
    assert not [mount for mount in found["Mounts"] if "docker.sock" in mount["Source"]]
    assert [mount["Destination"] for mount in found["Mounts"] if mount["RW"]] == ["/data"]
    assert found["Config"]["User"] == "10001:10001"
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert not found["HostConfig"]["CapAdd"]
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["Privileged"] is False


def test_the_living_manager_has_no_network_and_publishes_no_port(live: ComposeProject) -> None:
    found = live.container("worker_manager")
    assert found["HostConfig"]["NetworkMode"] == "none"
    assert not found["NetworkSettings"]["Ports"]
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert not found["HostConfig"]["CapAdd"]
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]


def test_the_images_hold_only_what_their_process_needs(live: ComposeProject) -> None:
    def missing(service: str, module: str) -> bool:
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        command = ("exec", "-T", service, "python", "-c", f"{code}")
        try:
            live.compose(*command)
        except AssertionError:
            return True
        return False

    assert not missing("gateway", "gateway")
    assert missing("gateway", "docker")
    assert missing("gateway", "worker_manager.launchers")
    assert missing("gateway", "pip")
    assert not missing("worker_manager", "docker")
    assert missing("worker_manager", "gateway")
    assert missing("worker_manager", "aiosqlite")


def test_a_request_starts_an_engine_that_is_fenced_in_and_reaches_nothing(live: ComposeProject) -> None:
    model_folder(live.models / "local" / "tiny")
    with httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {live.key}"}, timeout=60) as client:
        made = client.post("/api/endpoints", json={"name": "tiny", "model": "local/tiny"})
        assert made.status_code in {200, 201}, made.text
        said = client.post("/v1/completions", json={"model": "tiny", "prompt": "Hello", "max_tokens": 4})
        assert said.status_code == 200, said.text + live.logs()
    (engine,) = live.workers()
    assert engine["HostConfig"]["NetworkMode"] == "none"
    assert engine["HostConfig"]["CapDrop"] == ["ALL"]
    assert not engine["HostConfig"]["CapAdd"]
    assert engine["HostConfig"]["Privileged"] is False
    assert engine["Config"]["User"].startswith("10001")
    mounts = {mount["Source"]: mount["RW"] for mount in engine["Mounts"]}
    assert mounts[str(live.models / "local" / "tiny")] is False
    assert not [source for source in mounts if "docker.sock" in source or source == str(live.models)]


def kinds(live: ComposeProject) -> set[str]:
    """What kinds of containers there are."""
    return {one["Config"]["Labels"]["dev.hostler.kind"] for one in live.workers()}


def is_big(worker: str) -> bool:
    """Whether a worker's id is one of the endpoint with weights."""
    return worker.startswith("big-")


def test_weights_are_read_ahead_by_a_container_of_its_own_and_stay_in_the_page_cache(live: ComposeProject) -> None:
    weights = model_folder(live.models / "local" / "big") / "model.safetensors"
    weights.with_name("simulator.json").write_text('{"load_seconds": 60}')
    write_cold(weights, 72)
    weights.chmod(0o644)
    with httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {live.key}"}, timeout=60) as client:
        client.post("/api/endpoints", json={"name": "big", "model": "local/big"}).raise_for_status()
        client.post("/api/endpoints/big/start").raise_for_status()
        wait_until(lambda: '"prefetch_ended"' in live.logs("worker_manager"), "it was read", seconds=60, interval=0.2)
        (told,) = [line for line in live.logs("worker_manager").splitlines() if '"prefetch_ended"' in line]
        assert '"read_mib": 72' in told, live.logs("worker_manager")
        assert resident(weights) > 0.9, "the container that has read it is gone"
        wait_until(lambda: kinds(live) == {"worker"}, "no other container is left", seconds=20, interval=0.2)
        client.delete("/api/endpoints/big").raise_for_status()
        wait_until(
            lambda: not [one for one in live.engines() if one.startswith("big-")], "its engine is gone", seconds=60
        )


@pytest.mark.parametrize("service", ["gateway", "worker_manager"])
def test_the_healthcheck_turns_healthy(live: ComposeProject, service: str) -> None:
    def healthy() -> bool:
        state: dict[str, Any] = live.container(service)["State"]
        return bool(state["Health"]["Status"] == "healthy")

    wait_until(healthy, f"{service} healthy", seconds=READY_SECONDS, interval=0.5)


def test_with_the_gpu_file_the_manager_sees_every_card_and_starts_nothing_on_them() -> None:
    stand_in = (ROOT / "tests" / "testbed" / "nvidia_hook_stand_in").read_bytes()
    if os.geteuid() != 0 or not HOOK.is_file() or HOOK.read_bytes() != stand_in:
        pytest.skip("this machine is no simulated GPU host: run tests/testbed/simulated_gpus.sh as root")
    two = cards(2)
    SimulatedHost.create(SYSTEM_FOLDER, two)
    with project(gpu=True) as found:
        wait_ready(found)
        answered = httpx.get(f"{found.url}/api/host", headers={"Authorization": f"Bearer {found.key}"}, timeout=10)
        assert [gpu["uuid"] for gpu in answered.json()["gpus"]] == [card.uuid for card in two], answered.text
        (request,) = found.container("worker_manager")["HostConfig"]["DeviceRequests"]
        assert request["Capabilities"] == [["utility"]]
        assert not found.container("gateway")["HostConfig"]["DeviceRequests"]

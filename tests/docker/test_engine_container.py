"""`docker inspect` of an engine that a request started, through the compose file as it stands."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.compose import ComposeStack, compose_stack, docker

GIB = 1 << 30


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    with compose_stack(HOSTLER_ENGINE_MEMORY_GIB="2", HOSTLER_STOP_SECONDS="5") as found:
        found.endpoint("other")
        found.endpoint("tiny")
        yield found


@pytest.fixture
def engine(stack: ComposeStack) -> dict[str, Any]:
    answer = stack.ask("tiny")
    assert answer.status_code == 200, answer.text
    return stack.project.engines()[answer.headers["x-hostler-worker"]]


def test_an_engine_has_no_network_and_no_power(engine: dict[str, Any]) -> None:
    host = engine["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert set(engine["NetworkSettings"]["Networks"]) <= {"none"}
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert engine["Config"]["User"] == "10001:10001"
    assert not host["DeviceRequests"]
    assert not host["Devices"]


def test_an_engine_sees_its_own_model_its_own_sockets_and_the_cache(engine: dict[str, Any]) -> None:
    mounts = {mount["Destination"]: mount for mount in engine["Mounts"]}
    worker = engine["Config"]["Labels"]["dev.hostler.id"]
    assert set(mounts) == {"/models/local/tiny", "/run/engine", "/cache"}
    assert mounts["/models/local/tiny"]["RW"] is False
    assert mounts["/models/local/tiny"]["Source"].endswith("/local/tiny")
    assert mounts["/run/engine"]["Source"].endswith(f"/{worker}")
    assert not [mount for mount in engine["Mounts"] if "docker.sock" in mount["Source"]]


def test_an_engine_is_limited_in_memory_processes_and_log(engine: dict[str, Any]) -> None:
    host = engine["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (2 * GIB, 2 * GIB)
    assert host["ShmSize"] == GIB
    assert host["PidsLimit"] > 0
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["RestartPolicy"]["Name"] == "no"


def test_from_inside_an_engine_nothing_else_can_be_seen(stack: ComposeStack, engine: dict[str, Any]) -> None:
    look = "ls /sys/class/net; ls /models/local; ls /run/engine; ls /var/run/docker.sock 2>&1 | grep -c 'No such'"
    seen = docker("exec", engine["Id"], "sh", "-c", look).split()
    assert seen == ["lo", "tiny", "engine.sock", "1"]
    assert {item.name for item in (stack.models / "local").iterdir()} == {"tiny", "other"}


def test_no_key_and_no_hub_token_reaches_an_engine(stack: ComposeStack, engine: dict[str, Any]) -> None:
    environment = dict(word.partition("=")[::2] for word in engine["Config"]["Env"])
    assert stack.key not in environment.values()
    assert "HF_TOKEN" not in environment
    assert environment["HF_HUB_OFFLINE"] == "1"

"""Every rule of the policy, once, on a container that Docker Engine has started: what it says of it, and what holds."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.compose import ComposeStack, compose_stack, docker

GIB = 1 << 30
TMP = "rw,exec,nosuid,nodev,mode=1777,size=4294967296"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    with compose_stack(HOSTLER_ENGINE_MEMORY_GIB="2", HOSTLER_ENGINE_PIDS="200", HOSTLER_ENGINE_CPUS="1.5") as found:
        found.endpoint("other")
        found.endpoint("tiny")
        yield found


@pytest.fixture(scope="module")
def engine(stack: ComposeStack) -> dict[str, Any]:
    """`docker inspect` of an engine."""
    answer = stack.ask("tiny")
    assert answer.status_code == 200, answer.text
    return stack.project.engines()[answer.headers["x-hostler-worker"]]


SAID: dict[str, tuple[str, Any]] = {
    "no network": ("HostConfig.NetworkMode", "none"),
    "no port": ("HostConfig.PortBindings", None),
    "no network by its own setting": ("Config.NetworkDisabled", True),
    "all capabilities dropped": ("HostConfig.CapDrop", ["ALL"]),
    "none added": ("HostConfig.CapAdd", None),
    "no new privileges, and Docker's own seccomp profile": ("HostConfig.SecurityOpt", ["no-new-privileges:true"]),
    "not privileged": ("HostConfig.Privileged", False),
    "a read-only root": ("HostConfig.ReadonlyRootfs", True),
    "a user that is not root": ("Config.User", "10001:10001"),
    "in no further group": ("HostConfig.GroupAdd", None),
    "its own IPC": ("HostConfig.IpcMode", "private"),
    "its own processes": ("HostConfig.PidMode", ""),
    "its own name": ("HostConfig.UTSMode", ""),
    "its own cgroups": ("HostConfig.CgroupnsMode", "private"),
    "no namespace of the machine's users": ("HostConfig.UsernsMode", ""),
    "memory": ("HostConfig.Memory", 2 * GIB),
    "no swap": ("HostConfig.MemorySwap", 2 * GIB),
    "processes": ("HostConfig.PidsLimit", 200),
    "CPUs": ("HostConfig.NanoCpus", 1_500_000_000),
    "shared memory": ("HostConfig.ShmSize", GIB),
    "scratch space in memory alone": ("HostConfig.Tmpfs", {"/tmp": TMP}),
    "the kernel ends it first": ("HostConfig.OomScoreAdj", 500),
    "the kernel may end it": ("HostConfig.OomKillDisable", (None, False)),
    "no core files": ("HostConfig.Ulimits", [{"Name": "core", "Hard": 0, "Soft": 0}]),
    "a log with bounds": (
        "HostConfig.LogConfig",
        {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}},
    ),
    "no device": ("HostConfig.Devices", None),
    "no rule for devices": ("HostConfig.DeviceCgroupRules", None),
    "no card that it was not promised": ("HostConfig.DeviceRequests", None),
    "no bind": ("HostConfig.Binds", None),
    "no volumes of others": ("HostConfig.VolumesFrom", None),
    "no links": ("HostConfig.Links", None),
    "no start by itself": ("HostConfig.RestartPolicy.Name", "no"),
    "kept for its log": ("HostConfig.AutoRemove", False),
    "an init that reaps": ("HostConfig.Init", True),
    "ended by TERM": ("Config.StopSignal", "SIGTERM"),
    "the image of the allow-list": ("Config.Image", "hostler/engine-simulator:latest"),
    "not the image's folder": ("Config.WorkingDir", "/tmp"),
    "no variable of the kernel's": ("HostConfig.Sysctls", None),
}
"""Where `docker inspect` shows a rule, and what it has to say; a tuple: one of these."""


@pytest.mark.parametrize("rule", SAID)
def test_docker_engine_keeps_to_each_rule(rule: str, engine: dict[str, Any]) -> None:
    path, wanted = SAID[rule]
    found: Any = engine
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if wanted is None:
        assert not found
    else:
        assert found in (wanted if isinstance(wanted, tuple) else (wanted,))


LOOK = r"""
import json, os, pathlib
lines = lambda name: pathlib.Path("/proc/self", name).read_text().splitlines()
status = dict(line.split(":\t", 1) for line in lines("status") if ":\t" in line)
mounts = [line.split() for line in lines("mountinfo")]
room = lambda folder: (lambda found: found.f_blocks * found.f_frsize)(os.statvfs(folder))
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "powers": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no new privileges": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "cards": os.listdir("/sys/class/net"),
    "first": pathlib.Path("/proc/1/comm").read_text().strip(),
    "mounts": {one[4]: one[5].split(",")[0] for one in mounts},
    "tmp": room("/tmp"), "shm": room("/dev/shm"),
    "devices": sorted(os.listdir("/dev")),
    "umask": os.umask(0),
    "environment": sorted(os.environ),
}))
"""


@pytest.fixture(scope="module")
def seen(engine: dict[str, Any]) -> dict[str, Any]:
    """The same from inside."""
    found: dict[str, Any] = json.loads(docker("exec", engine["Id"], "python3", "-c", LOOK))
    return found


def test_inside_it_is_nobody_and_has_no_power(seen: dict[str, Any]) -> None:
    assert seen["ids"] == [[10001] * 3, [10001] * 3, [10001]]
    assert {int(power, 16) for power in seen["powers"]} == {0}
    assert (seen["no new privileges"], seen["seccomp"]) == ("1", "2")


def test_inside_there_is_no_network_and_no_device_of_the_machine(seen: dict[str, Any]) -> None:
    assert seen["cards"] == ["lo"]
    harmless = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"}
    assert set(seen["devices"]) <= harmless | {"tty", "urandom", "zero", "console"}


def test_inside_nothing_can_be_written_but_its_three_places(seen: dict[str, Any]) -> None:
    kernel = ("/proc", "/sys", "/dev")
    writable = {place for place, how in seen["mounts"].items() if how == "rw" and not place.startswith(kernel)}
    assert writable - {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"} == {"/tmp", "/run/engine", "/cache"}
    assert seen["mounts"]["/"] == "ro"
    assert seen["mounts"]["/models/local/tiny"] == "ro"
    assert (seen["tmp"], seen["shm"]) == (4 * GIB, GIB)


def test_mounts_are_its_own_weights_sockets_and_cache(stack: ComposeStack, engine: dict[str, Any]) -> None:
    mounts = {mount["Destination"]: mount for mount in engine["Mounts"]}
    worker = engine["Config"]["Labels"]["dev.hostler.id"]
    assert {place: mount["RW"] for place, mount in mounts.items()} == {
        "/models/local/tiny": False,
        "/run/engine": True,
        "/cache": True,
    }
    assert mounts["/models/local/tiny"]["Source"] == os.path.realpath(stack.models / "local" / "tiny")
    assert mounts["/run/engine"]["Source"].endswith(f"_engines/_data/{worker}")
    assert "_cache/_data/" in mounts["/cache"]["Source"]
    assert {mount["Type"] for mount in engine["HostConfig"]["Mounts"]} == {"bind"}


def test_it_runs_the_images_program_with_flags_of_ours_and_a_closed_environment(
    stack: ComposeStack, engine: dict[str, Any], seen: dict[str, Any]
) -> None:
    image = json.loads(docker("image", "inspect", engine["Config"]["Image"]))[0]["Config"]
    shell = ["/bin/sh", "-c", 'umask 007 && exec "$@"', "sh"]
    assert engine["Config"]["Entrypoint"] == [*shell, *image["Entrypoint"]]
    assert engine["Config"]["Cmd"][:4] == [
        "/models/local/tiny",
        "--uds=/run/engine/engine.sock",
        "--served-model-name",
        "tiny",
    ]
    assert stack.key not in json.dumps(engine)
    unknown = [name for name in seen["environment"] if name.startswith(("HOSTLER_", "HF_TOKEN", "DOCKER"))]
    assert unknown == []


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

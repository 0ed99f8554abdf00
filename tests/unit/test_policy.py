import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.battery import Tell
from tests.support.fences import Allowed, breaches
from tests.support.hostile_specs import GPU, OTHER_IMAGE, TEXTS, hostile, hostile_folder
from worker_manager import policy
from worker_manager.contract import DownloadSpec, FailureKind, LoraRoom, WorkerSpec

CONTEXT = policy.PolicyContext(
    instance="hostler",
    images=("vllm/vllm-openai:v0.32.0", OTHER_IMAGE),
    models_on_host="/srv/models",
    engines_on_host="/srv/engines",
    cache_on_host="/srv/cache",
    gpu_totals_mib={GPU: 80_000},
)
JOB = policy.JobContext(
    instance="hostler",
    image="hostler/manager:latest",
    models_on_host="/srv/models",
    uid=1000,
    gid=1000,
    env={"HF_TOKEN": "t"},
    command=("python", "-m", "worker_manager.jobs.download", "--model=org/name"),
)


def spec(**change: Any) -> WorkerSpec:
    base = WorkerSpec(id="w1", endpoint="tiny", model="local/tiny", served_names=("tiny",))
    return msgspec.structs.replace(base, **change)


def body(of: WorkerSpec, resolved: str | None = "local/tiny", context: policy.PolicyContext = CONTEXT) -> Any:
    return policy.container_body(of, context, resolved_model=resolved, generation=7)


def refusal(of: WorkerSpec, resolved: str | None = "local/tiny") -> policy.PolicyRefusal:
    with pytest.raises(policy.PolicyRefusal) as caught:
        body(of, resolved)
    return caught.value


def assert_every_rule_holds(made: dict[str, Any], of: WorkerSpec) -> None:
    """What may never be otherwise, whatever was asked for."""
    allowed = Allowed(
        images=CONTEXT.images,
        models="/srv/models",
        engines="/srv/engines",
        cache="/srv/cache",
        user="10001:10001",
        memory=64 * policy.GIB,
        pids=4096,
        shm=8 * policy.GIB,
        gpus=frozenset({GPU}),
        worker=of.id,
        generation=7,
    )
    assert breaches(made, allowed) == []
    devices = [request["DeviceIDs"] for request in made["HostConfig"].get("DeviceRequests", [])]
    assert devices == ([list(of.gpus)] if of.gpus else [])
    assert made["Cmd"][3 : 3 + len(of.served_names)] == list(of.served_names)


def test_a_body_follows_every_rule() -> None:
    made = body(spec(gpus=(GPU,), gpu_memory_mib=40_000))
    assert_every_rule_holds(made, spec(gpus=(GPU,)))
    assert made["Labels"]["dev.hostler.generation"] == "7"
    assert msgspec.json.decode(made["Labels"]["dev.hostler.spec"], type=WorkerSpec).gpus == (GPU,)


def test_an_engine_never_reaches_a_hub_and_never_reports_home() -> None:
    env = body(spec())["Env"]
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"} <= set(env)
    assert not any(name.startswith(("HF_TOKEN", "HOSTLER_")) for name in env)


def test_an_image_off_the_list_is_refused() -> None:
    assert "allow-list" in refusal(spec(image="evil/miner:latest")).message


def test_neither_images_nor_models_share_a_compile_cache_and_revisions_do() -> None:
    images, models = (
        ("a/b:1", "a-b:1", "a/b-1", "a.b:1"),
        ("local/a.b", "local/a-b", "hub/a/b/abcdef0", "hub/a/c/abcdef0"),
    )
    folders = {policy.cache_folder(image, model) for image in images for model in models}
    assert len(folders) == 16
    assert {folder.count("/") for folder in folders} == {1}
    assert not any(part in ("", ".", "..") for folder in folders for part in folder.split("/"))
    assert policy.cache_folder("a", "hub/a/b/abcdef0") == policy.cache_folder("a", "hub/a/b/1234567")


@pytest.mark.parametrize("resolved", ["../outside", "/etc", "a/../../b", "."])
def test_a_link_out_of_the_models_folder_is_refused(resolved: str) -> None:
    assert refusal(spec(), resolved).kind is FailureKind.REFUSED


def test_a_link_within_the_models_folder_mounts_what_it_points_to_under_its_own_name() -> None:
    made = body(spec(), "hub/org/name/abcdef0")
    weights = made["HostConfig"]["Mounts"][0]
    assert (weights["Source"], weights["Target"]) == ("/srv/models/hub/org/name/abcdef0", "/models/local/tiny")


def test_an_absent_model_is_told_as_such() -> None:
    assert refusal(spec(), None).kind is FailureKind.MODEL_MISSING


@pytest.mark.parametrize(
    "model", ["local/../../etc", "local/..", "hub/org/../abcdef0", "hub/../name/abcdef0", "/etc/passwd", "local/a/b"]
)
def test_a_model_path_that_climbs_is_refused(model: str) -> None:
    refusal(spec(model=model))


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ({"trust-remote-code": True}, FailureKind.BAD_FLAG),
        ({"download-dir": "/x"}, FailureKind.BAD_FLAG),
        ({"max-num-seqs": "8"}, FailureKind.BAD_FLAG),
        ({"max-num-seqs": True}, FailureKind.BAD_FLAG),
        ({"quantization": "a\x00b"}, FailureKind.BAD_FLAG),
    ],
)
def test_a_flag_that_may_not_be_set_is_refused(args: dict[str, Any], kind: FailureKind) -> None:
    assert refusal(spec(args=args)).kind is kind


def test_a_gpu_that_is_not_there_or_asked_for_twice_is_refused() -> None:
    assert "no GPU 'GPU-x'" in refusal(spec(gpus=("GPU-x",))).message
    assert "twice" in refusal(spec(gpus=(GPU, GPU))).message


def test_more_memory_than_the_card_has_is_refused() -> None:
    assert refusal(spec(gpus=(GPU,), gpu_memory_mib=80_001)).kind is FailureKind.OUT_OF_MEMORY_AT_LOAD


def test_a_gpu_on_a_machine_that_serves_from_its_cpus_is_refused() -> None:
    context = msgspec.structs.replace(CONTEXT, device="cpu")
    with pytest.raises(policy.PolicyRefusal, match="on the CPUs"):
        body(spec(gpus=(GPU,)), context=context)


def test_root_is_refused() -> None:
    with pytest.raises(policy.PolicyRefusal, match="never run as root"):
        body(spec(), context=msgspec.structs.replace(CONTEXT, uid=0))


def test_shared_memory_is_large_only_with_gpus() -> None:
    assert body(spec())["HostConfig"]["ShmSize"] == policy.GIB
    assert body(spec(gpus=(GPU,)))["HostConfig"]["ShmSize"] == 8 * policy.GIB


def test_a_job_has_a_network_and_only_the_models_folder() -> None:
    made = policy.job_body("download-1", DownloadSpec(model="org/name"), JOB)
    host = made["HostConfig"]
    assert host["NetworkMode"] == "bridge"
    assert [mount["Source"] for mount in host["Mounts"]] == ["/srv/models"]
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert made["User"] == "1000:1000"
    assert made["Entrypoint"] == ["python"]


def test_an_engine_with_room_for_adapters_sees_copies_of_its_own_and_one_variable_more() -> None:
    room = LoraRoom(max_rank=32, max_loras=2, max_cpu_loras=8)
    plain, made = body(spec()), body(spec(lora=room))
    more = [mount for mount in made["HostConfig"]["Mounts"] if mount not in plain["HostConfig"]["Mounts"]]
    assert more == [
        {"Type": "bind", "Source": "/srv/engines/w1/adapters", "Target": "/run/engine/adapters", "ReadOnly": True}
    ]
    assert set(made["Env"]) - set(plain["Env"]) == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"}
    assert not any("LORA" in variable for variable in plain["Env"])
    flags = ["--enable-lora", "--max-lora-rank=32", "--max-loras=2", "--max-cpu-loras=8"]
    assert [word for word in made["Cmd"] if "lora" in word] == flags
    assert not any("lora" in word for word in plain["Cmd"])


def test_room_that_contradicts_itself_is_refused() -> None:
    assert refusal(spec(lora=LoraRoom(max_loras=8, max_cpu_loras=4))).kind is FailureKind.BAD_FLAG
    assert "not valid" in refusal(spec(lora=LoraRoom(max_rank=17))).message  # type: ignore[arg-type] # that is the point


@pytest.mark.parametrize(
    "flag", ["enable-lora", "lora-modules", "max-loras", "lora-target-modules", "default-mm-loras"]
)
def test_no_flag_of_an_endpoint_says_anything_about_adapters(flag: str) -> None:
    assert refusal(spec(args={flag: "x"})).kind is FailureKind.BAD_FLAG


# any spec

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(TEXTS),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some, max_size=3),
    max_leaves=5,
)
changes = st.dictionaries(st.sampled_from(WorkerSpec.__struct_fields__), values, max_size=4)


@settings(max_examples=1000, deadline=None)
@given(changes, st.just("local/tiny") | st.none() | st.sampled_from(TEXTS))
def test_a_struct_that_nothing_has_checked_gives_a_body_that_follows_every_rule_or_a_refusal(
    change: dict[str, Any], resolved: str | None
) -> None:
    of = spec(**change)
    try:
        made = body(of, resolved)
    except policy.PolicyRefusal:
        return  # typed, which is all it must be
    else:
        assert_every_rule_holds(made, of)


SPECS = 10_000


def test_ten_thousand_hostile_descriptions_are_refused_or_become_a_body_that_follows_every_rule(
    record_property: Tell,
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it where the test fails
    chance = random.Random(seed)  # noqa: S311 - no secret
    outcomes = Counter(outcome_of(hostile(chance), hostile_folder(chance)) for _ in range(SPECS))
    assert min(outcomes["invalid"], outcomes["refused"], outcomes["a body"]) > SPECS / 50, outcomes
    record_property("of 10,000", ", ".join(f"{count:,} {what}" for what, count in sorted(outcomes.items())))


def outcome_of(sent: dict[str, Any], resolved: str | None) -> str:
    """What becomes of a description that comes over the socket; every body is checked."""
    try:
        of = msgspec.json.decode(msgspec.json.encode(sent), type=WorkerSpec)
    except msgspec.ValidationError:
        return "invalid"
    try:
        made = body(of, resolved)
    except policy.PolicyRefusal:
        return "refused"
    assert_every_rule_holds(made, of)
    assert set(sent) <= set(WorkerSpec.__struct_fields__), "a field that nobody knows was overlooked"
    return "a body"


# the checker itself


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value at a path like `HostConfig.Mounts.0.ReadOnly`."""

    def apply(made: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = made
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(last) if isinstance(place, list) else last] = value

    return apply


def add(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Append to the list at a path."""

    def apply(made: dict[str, Any]) -> None:
        place: Any = made
        for name in path.split("."):
            place = place[name]
        place.append(value)

    return apply


HOST_ROOT = {"Type": "bind", "Source": "/", "Target": "/host", "ReadOnly": True}
MUTATIONS = [
    *(("Image", "evil/miner"), ("User", "0:0"), ("User", ""), ("User", "root"), ("NetworkDisabled", False)),
    *(("Entrypoint", ["/bin/sh"]), ("Entrypoint", ["vllm", "serve"]), ("WorkingDir", "/cache"), ("Hostname", "x")),
    *(("ExposedPorts", {"80/tcp": {}}), ("Volumes", {"/x": {}}), ("Healthcheck", {"Test": ["CMD", "x"]})),
    *(("StopTimeout", 10**9), ("Labels.dev", "x"), ("Labels", {}), ("NetworkingConfig", {}), ("Shell", ["sh"])),
]
HOST_MUTATIONS = [
    *(("NetworkMode", "host"), ("NetworkMode", "bridge"), ("NetworkMode", "container:x"), ("Privileged", True)),
    *(("CapDrop", []), ("CapDrop", ["NET_RAW"]), ("CapAdd", ["SYS_ADMIN"]), ("SecurityOpt", [])),
    *(("SecurityOpt", ["no-new-privileges:true", "seccomp=unconfined"]), ("IpcMode", "host"), ("PidMode", "host")),
    *(("UTSMode", "host"), ("CgroupnsMode", "host"), ("UsernsMode", "host"), ("ReadonlyRootfs", False)),
    *(("Memory", 0), ("MemorySwap", -1), ("PidsLimit", 0), ("PidsLimit", -1), ("PidsLimit", 10**6), ("ShmSize", 0)),
    *(("Tmpfs", {"/tmp": ""}), ("Tmpfs", {}), ("LogConfig", {"Type": "json-file", "Config": {}})),
    *(("RestartPolicy", {"Name": "always"}), ("AutoRemove", True), ("Ulimits", []), ("OomScoreAdj", -1000)),
    *(("Devices", [{"PathOnHost": "/dev/sda"}]), ("DeviceCgroupRules", ["a *:* rwm"]), ("Binds", ["/:/host"])),
    *(
        ("VolumesFrom", ["x"]),
        ("Runtime", "other"),
        ("Sysctls", {"a": "b"}),
        ("GroupAdd", ["0"]),
        ("CgroupParent", "/"),
    ),
    *(("PortBindings", {}), ("ExtraHosts", ["a:1"]), ("Dns", ["1.1.1.1"]), ("OomKillDisable", True), ("NanoCpus", 0)),
    *(("MaskedPaths", []), ("ReadonlyPaths", []), ("StorageOpt", {}), ("Mounts.0.ReadOnly", False)),
    *(("Mounts.0.Source", "/srv/models"), ("Mounts.0.Source", "/etc"), ("Mounts.0.Source", "/srv/models/a/../../x")),
    *(("Mounts.1.Source", "/srv/engines"), ("Mounts.1.Source", "/srv/engines/w2"), ("Mounts.2.Source", "/srv/cache/")),
    *(("Mounts.1.Source", "/var/run/docker.sock"), ("Mounts.2.Target", "/etc"), ("Mounts.0.Type", "volume")),
    *(("Mounts.1.BindOptions", {"Propagation": "rshared"}), ("Mounts", [])),
    *(("DeviceRequests.0.DeviceIDs", ["all"]), ("DeviceRequests.0.DeviceIDs", []), ("DeviceRequests.0.Count", -1)),
    *(("DeviceRequests.0.Capabilities", [["gpu", "display"]]), ("DeviceRequests", [])),
]
ADDITIONS = [
    *(
        ("HostConfig.Mounts", HOST_ROOT),
        ("Env", "LD_PRELOAD=/x.so"),
        ("Env", "HF_TOKEN=x"),
        ("Env", "HF_HUB_OFFLINE=0"),
    ),
    *(("Env", "PYTHONPATH=/tmp"), ("Env", "VLLM_CPU_KVCACHE_SPACE=1\nA=b"), ("Cmd", "--trust-remote-code")),
    *(
        ("Cmd", "--uds=/cache/x"),
        ("Cmd", "--host=0.0.0.0"),
        ("Cmd", "-c"),
        ("Cmd", "word"),
        ("Cmd", "--lora-modules=x"),
    ),
]
EVERY_MUTATION = [
    *((f"{path}={value}", change(path, value)) for path, value in MUTATIONS),
    *((f"HostConfig.{path}={value}", change(f"HostConfig.{path}", value)) for path, value in HOST_MUTATIONS),
    *((f"{path}+{value}", add(path, value)) for path, value in ADDITIONS),
    ("Cmd.0", change("Cmd.0", "/models/../etc")),
    ("Cmd.1", change("Cmd.1", "--uds=/cache/engine.sock")),
]


@pytest.mark.parametrize("mutate", [pytest.param(mutate, id=name) for name, mutate in EVERY_MUTATION])
def test_a_body_in_which_anything_was_loosened_is_found(mutate: Callable[[dict[str, Any]], None]) -> None:
    of = spec(gpus=(GPU,), gpu_memory_mib=40_000)
    made = body(of)
    assert_every_rule_holds(made, of)
    mutate(made)
    with pytest.raises(AssertionError):
        assert_every_rule_holds(made, of)

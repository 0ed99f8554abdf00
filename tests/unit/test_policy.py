import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_manager import policy
from worker_manager.contract import DownloadSpec, FailureKind, LoraRoom, WorkerSpec

GPU = "GPU-11111111-2222-3333-4444-555555555555"
CONTEXT = policy.PolicyContext(
    instance="hostler",
    images=("vllm/vllm-openai:v0.32.0", "other/engine:1"),
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
    host = made["HostConfig"]
    assert made["Image"] in CONTEXT.images
    assert made["User"] == "10001:10001"
    assert host["NetworkMode"] == "none"
    assert made["NetworkDisabled"] is True
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert not host.keys() & {"CapAdd", "Devices", "Binds", "VolumesFrom", "PortBindings", "Links", "ExtraHosts"}
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["IpcMode"], host["PidMode"], host["UTSMode"]) == ("private", "", "")
    assert host["ReadonlyRootfs"] is True
    assert host["AutoRemove"] is False
    assert host["Init"] is True
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"]["Config"]["max-size"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert host["ShmSize"] > 0
    assert_mounts_are_the_three_known_ones(host["Mounts"], of)
    devices = [request["DeviceIDs"] for request in host.get("DeviceRequests", [])]
    assert devices == ([list(of.gpus)] if of.gpus else [])
    assert not any("docker.sock" in str(mount) for mount in host["Mounts"])


def assert_mounts_are_the_three_known_ones(mounts: list[dict[str, Any]], of: WorkerSpec) -> None:
    weights, sockets, cache = mounts
    assert weights["ReadOnly"] is True
    assert weights["Source"].startswith("/srv/models/")
    assert ".." not in weights["Source"].split("/")
    assert sockets["Source"] == f"/srv/engines/{of.id}"
    assert sockets["Target"] == "/run/engine"
    assert cache["Source"].startswith("/srv/cache/")
    assert cache["Target"] == "/cache"


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


def test_images_never_share_a_compile_cache() -> None:
    folders = {policy.cache_folder(name) for name in ("a/b:1", "a-b:1", "a/b-1", "a.b:1")}
    assert len(folders) == 4
    assert not any("/" in folder for folder in folders)


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


# any spec

hostile = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "a",
        "tiny",
        "--privileged",
        "-v",
        "/:/host",
        "\x00",
        "",
        "local",
        "hub",
        "\n",
        "ü",
        "$(id)",
        "a b",
    ]
)
paths = st.lists(hostile, min_size=1, max_size=5).map("/".join)
values = st.one_of(hostile, st.booleans(), st.integers(-5, 10**6), st.floats(allow_nan=False, allow_infinity=False))
flags = st.sampled_from(["max-num-seqs", "dtype", "enforce-eager", "uds", "trust-remote-code", "port", "seed", "x y"])
any_specs = st.builds(
    WorkerSpec,
    id=st.one_of(st.just("w1"), hostile),
    endpoint=hostile,
    image=st.one_of(st.none(), st.just(CONTEXT.images[1]), hostile),
    model=st.one_of(st.just("local/tiny"), st.just("hub/org/name/abcdef0"), paths),
    served_names=st.lists(hostile, max_size=2).map(tuple),
    gpus=st.lists(st.sampled_from([GPU, "all", "GPU-x"]), max_size=2).map(tuple),
    gpu_memory_mib=st.one_of(st.none(), st.integers(-1, 10**6)),
    max_model_len=st.one_of(st.none(), st.integers(-1, 10**6)),
    args=st.dictionaries(flags, values, max_size=3),
)


@settings(max_examples=2000, deadline=None)
@given(any_specs, st.one_of(st.just("local/tiny"), st.none(), paths))
def test_any_spec_gives_a_body_that_follows_every_rule_or_a_refusal(of: WorkerSpec, resolved: str | None) -> None:
    try:
        made = body(of, resolved)
    except policy.PolicyRefusal:
        return  # typed, which is all it must be
    else:
        assert_every_rule_holds(made, of)
        assert_words_hold_no_other_flags(made["Cmd"], of)


def assert_words_hold_no_other_flags(words: list[str], of: WorkerSpec) -> None:
    """Every word that begins with a dash is one of ours, or an allowed flag."""
    ours = {"uds", "served-model-name", "shutdown-timeout", "max-model-len", "gpu-memory-utilization"}
    ours |= {"tensor-parallel-size", "disable-uvicorn-access-log", "no-enable-log-requests"}
    ours |= {"no-enable-log-outputs", "no-enable-log-deltas", "enable-prompt-tokens-details"}
    names = {word.removeprefix("--").split("=")[0] for word in words if word.startswith("-")}
    allowed = itertools.chain.from_iterable((name, f"no-{name}") for name in of.args)
    assert names <= ours | set(allowed)


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

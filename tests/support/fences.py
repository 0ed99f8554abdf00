"""What may never be otherwise in the body of an engine's container: an opinion of its own, beside `policy`.

Closed: a field that is not named here is a breach, whatever it says.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from worker_manager.engine_flags import ENGINE_FLAGS


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


GIB = 1 << 30
BODY_FIELDS = _words_of(
    "Image Entrypoint Cmd Env User WorkingDir Labels NetworkDisabled StopSignal StopTimeout HostConfig"
)
HOST_FIELDS = _words_of(
    "AutoRemove Privileged CapDrop SecurityOpt IpcMode PidMode UTSMode CgroupnsMode ReadonlyRootfs Tmpfs Mounts "
    "RestartPolicy LogConfig Init OomScoreAdj Ulimits Memory MemorySwap PidsLimit ShmSize NanoCpus DeviceRequests "
    "NetworkMode"
)
FIXED = {
    "NetworkMode": "none",
    "Privileged": False,
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges:true"],
    "IpcMode": "private",
    "PidMode": "",
    "UTSMode": "",
    "CgroupnsMode": "private",
    "ReadonlyRootfs": True,
    "AutoRemove": False,
    "RestartPolicy": {"Name": "no"},
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    "Init": True,
    "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
}
LABELS = {f"dev.hostler.{name}" for name in _words_of("instance kind id endpoint spec spec-hash generation")}
ENVIRONMENT = {
    "HOME": r"/cache",
    "USER": r"hostler",
    "LOGNAME": r"hostler",
    **dict.fromkeys(
        _words_of(
            "XDG_CACHE_HOME XDG_CONFIG_HOME VLLM_CACHE_ROOT VLLM_CONFIG_ROOT TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR "
            "FLASHINFER_WORKSPACE_BASE HF_HOME"
        ),
        r"/cache(/[a-z/]+)?",
    ),
    **dict.fromkeys(
        _words_of("HF_HUB_OFFLINE TRANSFORMERS_OFFLINE VLLM_NO_USAGE_STATS DO_NOT_TRACK PYTHONUNBUFFERED"), r"1"
    ),
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": r"120",
    "VLLM_CPU_KVCACHE_SPACE": r"\d+",
    "VLLM_SERVER_DEV_MODE": r"1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": r"True",
    "NCCL_SOCKET_IFNAME": r"lo",
    "GLOO_SOCKET_IFNAME": r"lo",
}
"""Every variable that an engine may have, with all it may say."""
OUR_FLAGS = _words_of(
    "uds served-model-name shutdown-timeout max-model-len gpu-memory-utilization tensor-parallel-size "
    "disable-uvicorn-access-log no-enable-log-requests no-enable-log-outputs no-enable-log-deltas "
    "enable-prompt-tokens-details enable-sleep-mode enable-lora max-lora-rank max-loras max-cpu-loras"
)
NEVER_FLAGS = _words_of(
    "trust-remote-code host port api-key middleware chat-template download-dir tool-parser-plugin config root-path "
    "ssl-keyfile ssl-certfile allow-credentials kv-transfer-config worker-cls worker-extension-cls model tokenizer "
    "reasoning-parser-plugin allowed-local-media-path logits-processors plugins"
)
"""Flags of vLLM that would load code or files of a caller's choice, or open a door."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allowed:
    """What one machine allows one worker; paths are the host's own."""

    images: tuple[str, ...]
    models: str
    engines: str
    cache: str
    user: str
    memory: int
    pids: int
    shm: int
    gpus: frozenset[str]
    worker: str
    generation: int


def breaches(body: Mapping[str, Any], allowed: Allowed) -> list[str]:
    """Every rule that this body breaks, as a word or two each."""
    host = body.get("HostConfig", {})
    found = [f"field {name}" for name in body.keys() - BODY_FIELDS]
    found += [f"HostConfig.{name}" for name in host.keys() - HOST_FIELDS]
    found += [f"HostConfig.{name}" for name, wanted in FIXED.items() if host.get(name) != wanted]
    rules = {
        "image": body.get("Image") in allowed.images,
        "user": body.get("User") == allowed.user and allowed.user.split(":")[0] not in ("", "0", "root"),
        "network": body.get("NetworkDisabled") is True,
        "folder": body.get("WorkingDir") == "/tmp",
        "stop": body.get("StopSignal") == "SIGTERM" and 0 <= body.get("StopTimeout", -1) <= 3600,
        "entry point": body.get("Entrypoint") == ["/bin/sh", "-c", 'umask 007 && exec "$@"', "sh", "vllm", "serve"],
        "memory": host.get("Memory") == host.get("MemorySwap") == allowed.memory,
        "pids": 0 < host.get("PidsLimit", 0) <= allowed.pids,
        "shared memory": 0 < host.get("ShmSize", 0) <= allowed.shm,
        "cpus": host.get("NanoCpus", 1) > 0,
        "oom score": 0 < host.get("OomScoreAdj", 0) <= 1000,
        "tmpfs": list(host.get("Tmpfs", {}).items()) == [("/tmp", f"rw,exec,nosuid,nodev,mode=1777,size={4 * GIB}")],
        "devices": _are_devices(host.get("DeviceRequests"), allowed.gpus),
    }
    found += [name for name, holds in rules.items() if not holds]
    found += _labels(body.get("Labels", {}), allowed)
    found += _mounts(host.get("Mounts", []), body.get("Cmd") or [""], allowed)
    found += _environment(body.get("Env", []))
    found += _words(body.get("Cmd") or [""])
    return found


def _are_devices(requests: list[dict[str, Any]] | None, gpus: frozenset[str]) -> bool:
    """Either none, or one request by name for GPUs of this machine."""
    if requests is None:
        return True
    named = requests[0].get("DeviceIDs", []) if len(requests) == 1 else []
    rest = {"Driver": "nvidia", "Capabilities": [["gpu"]], "Count": 0, "Options": {}}
    return (
        requests == [{"DeviceIDs": named, **rest}]
        and bool(named)
        and set(named) <= gpus
        and len(set(named)) == len(named)
    )


def _labels(labels: Mapping[str, str], allowed: Allowed) -> Iterator[str]:
    if labels.keys() - {"dev.hostler.length"} != LABELS:
        yield "labels"
    if labels.get("dev.hostler.id") != allowed.worker or labels.get("dev.hostler.kind") != "worker":
        yield "label of the worker"
    if labels.get("dev.hostler.generation") != str(allowed.generation):
        yield "label of the generation"
    if any("\x00" in text for text in labels.values()):
        yield "zero byte in a label"


def _mounts(mounts: list[dict[str, Any]], words: list[str], allowed: Allowed) -> Iterator[str]:
    """Weights, sockets, cache, and copies of adapters: each from its own place, to its own place, in its own mode."""
    adapters = "--enable-lora" in words
    wanted: list[tuple[str | None, bool | None]] = [(words[0], True), ("/run/engine", False), ("/cache", False)]
    wanted += [("/run/engine/adapters", True)] if adapters else []
    if [(mount.get("Target"), mount.get("ReadOnly")) for mount in mounts] != wanted:
        yield "mounts"
        return
    own = f"{allowed.engines}/{allowed.worker}"
    places = (f"{allowed.models}/", own, f"{allowed.cache}/", f"{own}/adapters")
    for mount, place in zip(mounts, places, strict=False):
        source = str(mount.get("Source"))
        is_there = source.startswith(place) and len(source) > len(place) if place.endswith("/") else source == place
        if not is_there or {"", ".", ".."} & set(source[1:].split("/")) or "\x00" in source:
            yield f"source of {mount['Target']}"
        if mount.keys() != {"Type", "Source", "Target", "ReadOnly"} or mount["Type"] != "bind":
            yield f"kind of {mount['Target']}"


def _environment(pairs: list[str]) -> Iterator[str]:
    names = [pair.partition("=")[0] for pair in pairs]
    if len(set(names)) != len(names):
        yield "a variable twice"
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in ENVIRONMENT or not re.fullmatch(ENVIRONMENT[name], value):
            yield f"variable {name}"


def _words(words: list[str]) -> Iterator[str]:
    """The model's folder, its socket, its names, and then flags of the list alone."""
    if not re.fullmatch(r"/models/[\w./-]+", words[0]) or {"", ".", ".."} & set(words[0][1:].split("/")):
        yield "model folder"
    if words[1:3] != ["--uds=/run/engine/engine.sock", "--served-model-name"]:
        yield "socket"
    rest = words[3:]
    while rest and not rest[0].startswith("-"):
        rest = rest[1:]
    if len(rest) == len(words[3:]):
        yield "no served name"
    for word in rest:
        name = word.partition("=")[0].removeprefix("--")
        is_known = name in OUR_FLAGS or name in ENGINE_FLAGS or name.removeprefix("no-") in ENGINE_FLAGS
        if not word.startswith("--") or not is_known or name in NEVER_FLAGS or name in ("uds", "served-model-name"):
            yield f"word {word[:40]!r}"
    if any("\x00" in word for word in words):
        yield "zero byte in a word"

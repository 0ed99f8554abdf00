"""The security boundary: a `WorkerSpec` becomes the body of a container, or a `PolicyRefusal`. Pure.

Nothing a caller sends reaches Docker but through this module. Whatever the spec says, the container has no network, no
capability, no way to new privileges, a read-only file system, a user that is not root, limits on memory and processes,
and sees only its model's folder (read-only), its own socket folder with copies of its LoRA adapters (those read-only),
and its own compile cache.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from worker_manager.contract import ADAPTERS_FOLDER, DownloadSpec, FailureKind, WorkerSpec, spec_hash
from worker_manager.engine_flags import flag_problem
from worker_manager.engines import sleep_rules, vllm

LABEL = "dev.hostler."
LABEL_INSTANCE = LABEL + "instance"
LABEL_KIND = LABEL + "kind"
LABEL_ID = LABEL + "id"
LABEL_SPEC = LABEL + "spec"
LABEL_SPEC_HASH = LABEL + "spec-hash"
LABEL_GENERATION = LABEL + "generation"
LABEL_ENDPOINT = LABEL + "endpoint"
LABEL_LENGTH = LABEL + "length"

MODELS_IN_ENGINE = "/models"
SOCKETS_IN_ENGINE = "/run/engine"
CACHE_IN_ENGINE = "/cache"
ADAPTERS_IN_ENGINE = f"{SOCKETS_IN_ENGINE}/{ADAPTERS_FOLDER}"

MIB = 1024 * 1024
GIB = 1024 * MIB
TMP_BYTES = 4 * GIB
CPU_SHM_GIB = 1.0
LOG_ROTATION = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
OOM_SCORE = 500
"""Where the machine runs out of memory, the kernel ends an engine before the gateway or the manager."""
WITH_GROUP_ACCESS = ("/bin/sh", "-c", 'umask 007 && exec "$@"', "sh")
"""Before the image's own entry point: the engine's socket must be open to the group, where manager and gateway are."""
JOB_MEMORY_BYTES = 2 * GIB
JOB_PIDS = 256


class PolicyRefusal(Exception):
    """A spec that may not run here; `message` says why and `hint` what would do."""

    def __init__(self, message: str, hint: str = "", kind: FailureKind = FailureKind.REFUSED) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


class PolicyContext(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine allows; paths are the host's own, as Docker Engine sees them."""

    instance: str
    images: tuple[str, ...]
    """The allow-list; the first is the default."""
    models_on_host: str
    engines_on_host: str
    cache_on_host: str
    uid: int = 10001
    gid: int = 10001
    device: str = "cuda"
    memory_bytes: int = 64 * GIB
    shm_gib: float = 8
    pids: int = 4096
    cpus: float = 0
    cpu_kv_cache_gib: float = 1
    stop_seconds: float = 30
    engine_env: dict[str, str] = {}
    gpu_totals_mib: dict[str, int] = {}
    """Memory of each GPU of this machine, by UUID."""
    sleep: bool = False
    """Engines that may sleep are started so that they can."""


class JobContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a download job gets."""

    instance: str
    image: str
    models_on_host: str
    uid: int
    gid: int
    env: dict[str, str]
    command: tuple[str, ...]
    models_in_job: str = "/models"


def container_name(instance: str, unit_id: str) -> str:
    """The name of a unit's container."""
    return f"{instance}-{unit_id}"


def image_of(spec: WorkerSpec, images: tuple[str, ...]) -> str:
    """The image this worker runs. Raises `PolicyRefusal`."""
    image = spec.image or images[0]
    if image not in images:
        raise PolicyRefusal(
            f"engine image {image!r} is not on the manager's allow-list",
            f"use one of {', '.join(images)}, or add it to HOSTLER_ENGINE_IMAGES and restart the manager",
        )
    return image


def cache_folder(image: str, model: str) -> str:
    """The compile-cache folder of one image and one model, whatever its revision, below the folder of caches.

    An engine runs what it finds there. So what one model's engine has put there is never run by another's.
    """
    source = "/".join(model.split("/")[:3]) if model.startswith("hub/") else model
    return f"{_folder_of(image)}/{_folder_of(source)}"


def _folder_of(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name)[-48:].strip("-.")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def check_spec(spec: WorkerSpec, gpu_totals_mib: Mapping[str, int], device: str) -> WorkerSpec:
    """The same spec, for which the rules hold that all launchers share. Raises `PolicyRefusal`."""
    try:  # a struct made in Python is not checked, one from a label or a file may be anything
        spec = msgspec.convert(msgspec.to_builtins(spec), WorkerSpec)
    except msgspec.ValidationError as error:
        raise PolicyRefusal(f"the worker's description is not valid: {error}") from error
    _check_names(spec)
    for name, value in spec.args.items():
        problem = flag_problem(name, value)
        if problem is not None:
            raise PolicyRefusal(problem, "see the list of engine flags in the documentation", FailureKind.BAD_FLAG)
    if spec.gpus and device == "cpu":
        raise PolicyRefusal("a GPU was asked for, but engines run on the CPUs here", "set HOSTLER_DEVICE=cuda")
    for uuid in spec.gpus:
        if uuid not in gpu_totals_mib:
            known = ", ".join(gpu_totals_mib) or "none"
            raise PolicyRefusal(f"this machine has no GPU {uuid!r}", f"GPUs it has: {known}")
        if spec.gpu_memory_mib is not None and spec.gpu_memory_mib > gpu_totals_mib[uuid]:
            raise PolicyRefusal(
                f"{spec.gpu_memory_mib} MiB were asked for on a GPU of {gpu_totals_mib[uuid]} MiB",
                "ask for less memory, or for more GPUs",
                FailureKind.OUT_OF_MEMORY_AT_LOAD,
            )
    cache = spec.args.get("kv-cache-memory-bytes", 0)
    if spec.gpu_memory_mib is not None and isinstance(cache, int) and cache > spec.gpu_memory_mib * MIB:
        raise PolicyRefusal(
            f"kv-cache-memory-bytes {cache} is more than the {spec.gpu_memory_mib} MiB that the worker was promised",
            "lower it, or leave it out",
            FailureKind.BAD_FLAG,
        )
    _check_room(spec)
    if len(set(spec.gpus)) != len(spec.gpus):
        raise PolicyRefusal("the same GPU was named twice for one worker")
    return spec


def _check_room(spec: WorkerSpec) -> None:
    if spec.lora is not None and spec.lora.max_cpu_loras < spec.lora.max_loras:
        raise PolicyRefusal(
            f"max_cpu_loras {spec.lora.max_cpu_loras} is less than max_loras {spec.lora.max_loras}",
            "keep at least as many adapters in host memory as there are slots",
            FailureKind.BAD_FLAG,
        )


def _check_names(spec: WorkerSpec) -> None:
    if not spec.served_names or any(not name or name.startswith("-") for name in spec.served_names):
        raise PolicyRefusal("a worker needs at least one served name, and none may be empty or begin with a dash")
    if any("\x00" in name for name in (*spec.served_names, spec.endpoint)):
        raise PolicyRefusal("a name holds a zero byte")
    if any(part in ("", ".", "..") for part in spec.model.split("/")):
        raise PolicyRefusal(f"model folder {spec.model!r} leads out of the models folder")


def check_model_folder(spec: WorkerSpec, resolved: str | None) -> str:
    """The folder of a worker's model (see `check_resolved`). Raises `PolicyRefusal`."""
    return check_resolved(spec.model, resolved)


def check_resolved(model: str, resolved: str | None) -> str:
    """A model's folder with all links followed, relative to the models folder.

    `resolved` is that path if the folder exists, None if not; it begins with `..` or `/` where a link leads out of the
    models folder. Raises `PolicyRefusal`.
    """
    if resolved is None:
        raise PolicyRefusal(
            f"the model folder {model!r} does not exist below the models folder",
            "put the model there, or download it first",
            FailureKind.MODEL_MISSING,
        )
    path = PurePosixPath(resolved)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\x00" in resolved:
        raise PolicyRefusal(
            f"the model folder {model!r} is a link out of the models folder",
            "move the model into the models folder, or mount it there",
        )
    return str(path)


def container_body(
    spec: WorkerSpec,
    context: PolicyContext,
    *,
    resolved_model: str | None,
    generation: int,
    entrypoint: tuple[str, ...] = ("vllm", "serve"),
    length: int | None = None,
) -> dict[str, Any]:
    """The body for `POST /containers/create`. `entrypoint` is the image's own; `length`: instead of the spec's.

    Raises `PolicyRefusal`.
    """
    spec = check_spec(spec, context.gpu_totals_mib, context.device)
    image = image_of(spec, context.images)
    model = check_model_folder(spec, resolved_model)
    if context.uid == 0:
        raise PolicyRefusal("engines never run as root", "run the manager with another user")
    inside = f"{MODELS_IN_ENGINE}/{spec.model}"
    sleep = sleep_rules.may_start(spec, context.engine_env, enabled=context.sleep)
    arguments = vllm.serve_arguments(
        spec,
        model_folder=inside,
        socket=f"{SOCKETS_IN_ENGINE}/engine.sock",
        stop_seconds=context.stop_seconds,
        gpu_totals_mib=context.gpu_totals_mib,
        sleep=sleep,
        length=length,
    )
    env = vllm.environment(
        spec,
        home=CACHE_IN_ENGINE,
        cpu_kv_cache_gib=context.cpu_kv_cache_gib,
        device=context.device,
        extra=context.engine_env,
        sleep=sleep,
    )
    mounts = [
        bind_mount(f"{context.models_on_host}/{model}", inside, read_only=True),
        bind_mount(f"{context.engines_on_host}/{spec.id}", SOCKETS_IN_ENGINE, read_only=False),
        bind_mount(f"{context.cache_on_host}/{cache_folder(image, spec.model)}", CACHE_IN_ENGINE, read_only=False),
    ]
    if spec.lora is not None:
        adapters = f"{context.engines_on_host}/{spec.id}/{ADAPTERS_FOLDER}"
        mounts.append(bind_mount(adapters, ADAPTERS_IN_ENGINE, read_only=True))
    return {
        "Image": image,
        "Entrypoint": [*WITH_GROUP_ACCESS, *entrypoint],
        "Cmd": list(arguments),
        "Env": _env_list(env),
        "User": f"{context.uid}:{context.gid}",
        "WorkingDir": "/tmp",  # noqa: S108 - a path inside the container, the only writable one of its own
        "Labels": worker_labels(spec, context.instance, generation, length),
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",
        "StopTimeout": int(context.stop_seconds),
        "HostConfig": host_config(mounts) | _worker_limits(spec, context) | {"NetworkMode": "none"},
    }


def job_body(job_id: str, spec: DownloadSpec, context: JobContext) -> dict[str, Any]:
    """The body of a download job's container: the one kind with a network, and without any weights but to write."""
    mounts = [bind_mount(context.models_on_host, context.models_in_job, read_only=False)]
    limits = {
        "Memory": JOB_MEMORY_BYTES,
        "MemorySwap": JOB_MEMORY_BYTES,
        "PidsLimit": JOB_PIDS,
        "NetworkMode": "bridge",
    }
    return {
        "Image": context.image,
        "Entrypoint": list(context.command[:1]),
        "Cmd": list(context.command[1:]),
        "Env": _env_list(context.env),
        "User": f"{context.uid}:{context.gid}",
        "WorkingDir": "/tmp",  # noqa: S108 - a path inside the container
        "Labels": job_labels(job_id, spec, context.instance),
        "StopSignal": "SIGTERM",
        "StopTimeout": 10,
        "HostConfig": host_config(mounts) | limits,
    }


def worker_labels(spec: WorkerSpec, instance: str, generation: int, length: int | None) -> dict[str, str]:
    """What a worker's container remembers for the manager."""
    return ({LABEL_LENGTH: str(length)} if length is not None else {}) | {
        LABEL_INSTANCE: instance,
        LABEL_KIND: "worker",
        LABEL_ID: spec.id,
        LABEL_ENDPOINT: spec.endpoint,
        LABEL_SPEC: msgspec.json.encode(spec, order="deterministic").decode(),
        LABEL_SPEC_HASH: spec_hash(spec),
        LABEL_GENERATION: str(generation),
    }


def job_labels(job_id: str, spec: DownloadSpec, instance: str) -> dict[str, str]:
    """What a job's container remembers for the manager."""
    return {
        LABEL_INSTANCE: instance,
        LABEL_KIND: "job",
        LABEL_ID: job_id,
        LABEL_SPEC: msgspec.json.encode(spec, order="deterministic").decode(),
    }


def host_config(mounts: list[dict[str, Any]]) -> dict[str, Any]:
    """What every container of ours has, worker or job."""
    return {
        "AutoRemove": False,  # an exited container holds the log that says why
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private",
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={TMP_BYTES}"},  # noqa: S108 - inside the container
        "Mounts": mounts,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": LOG_ROTATION,
        "Init": True,  # reaps what an engine's workers leave behind
        "OomScoreAdj": OOM_SCORE,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }


def _worker_limits(spec: WorkerSpec, context: PolicyContext) -> dict[str, Any]:
    """Memory, processes, CPUs, shared memory and GPUs of one worker."""
    shm_gib = context.shm_gib if spec.gpus else min(context.shm_gib, CPU_SHM_GIB)
    limits: dict[str, Any] = {
        "Memory": context.memory_bytes,
        "MemorySwap": context.memory_bytes,  # the same number: no swap
        "PidsLimit": context.pids,
        "ShmSize": max(int(shm_gib * GIB), 64 * MIB),
    }
    if context.cpus:
        limits["NanoCpus"] = int(context.cpus * 1_000_000_000)
    if spec.gpus:
        limits["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]], "Count": 0, "Options": {}}
        ]
    return limits


def bind_mount(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    """A bind mount; as a `Mount` and not a `Bind`, so that a missing source is an error and not a new folder.

    No propagation is named: Docker Engine wants another one for its own volumes than for the rest of the disk, and
    takes the right one by itself.
    """
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
    }


def _env_list(env: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(env.items())]

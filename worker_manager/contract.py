"""The structs that cross the manager's socket; beside it the gateway may import `engine_flags` and nothing else here.

The gateway sends a numbered `DesiredSet` of `WorkerSpec`s and never any Docker JSON. The manager answers with an
`ObservedSet`. Both are whole sets, never differences: sending one twice changes nothing, and after a crash of either
side the next exchange repairs what was lost.

Routes on the manager's Unix socket (JSON bodies, all bounded in time):

    GET    /observed?after=VERSION&wait=SECONDS   ObservedSet, once its version is not VERSION, else after `wait`
    PUT    /desired                               DesiredSet -> Accepted; 409 if a newer generation was accepted before
    GET    /workers/{id}/log?lines=N              LogTail; 404 unknown
    POST   /downloads                             DownloadSpec -> Download; the running one where there is one
    GET    /downloads                             list[Download]
    DELETE /downloads/{id}                        Download (cancelled); 404 unknown
    GET    /livez                                 204

Errors are `{"error": {"kind": ..., "message": ..., "hint": ...}}` (see `Refusal`).
"""

import hashlib
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from worker_manager.engine_flags import FlagValue

WORKER_ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}\Z"  # \Z and not $, which would let a line feed in
HUB_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/(?!\.{1,2}(/|\Z))[A-Za-z0-9_.-]{1,96}"
MODEL_PATH_PATTERN = rf"^(local/[A-Za-z0-9][\w.-]{{0,95}}|hub/{HUB_PATTERN}/[0-9a-f]{{7,64}})\Z"

WorkerId = Annotated[str, msgspec.Meta(pattern=WORKER_ID_PATTERN)]
ModelPath = Annotated[str, msgspec.Meta(pattern=MODEL_PATH_PATTERN, max_length=256)]
AdapterName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\Z")]

GPU_CONTEXT_MIB = 512
"""What CUDA itself holds on each GPU of an engine. vLLM neither counts it nor keeps it within its utilization (0.32:
v1/worker/gpu_worker takes its first snapshot of the memory after the device is set), so a promise has to."""

ENGINE_SOCKET = "engine.sock"
"""Name of an engine's socket inside its own folder below the engines folder: `<engines>/<worker id>/engine.sock`."""

ADAPTERS_FOLDER = "adapters"
"""Name of the folder beside that socket with copies of the worker's LoRA adapters."""


class WorkerState(StrEnum):
    """What a worker is doing. Every state but READY and FAILED has a deadline in the manager."""

    WAITING = "waiting"
    """Desired, not created yet; `reason` says what for."""
    CREATING = "creating"
    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    """Was READY and gives its GPU memory back; takes no requests, and what it gave back is not proven yet."""
    ASLEEP = "asleep"
    """Runs without most of its GPU memory (`residency` says how deep); a request would hang or kill it."""
    WAKING = "waking"
    """Takes its GPU memory back and is asked whether it still answers as before; then READY."""
    STOPPING = "stopping"
    BACKOFF = "backoff"
    """Died; will be started again, `reason` says when."""
    FAILED = "failed"
    """Given up after too many deaths, or refused; `failure` says why."""


class Residency(StrEnum):
    """How warm a worker is."""

    HOT = "hot"
    ASLEEP_1 = "asleep_1"
    """Its weights are in the machine's own memory."""
    ASLEEP_2 = "asleep_2"
    """Its weights are dropped; waking reads them from the disk again."""
    GONE = "gone"


class FailureKind(StrEnum):
    """Why a worker could not serve. The gateway shows it on the endpoint's status."""

    REFUSED = "refused"
    OUT_OF_MEMORY_AT_LOAD = "out_of_memory_at_load"
    OUT_OF_MEMORY_AT_RUN = "out_of_memory_at_run"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    MODEL_MISSING = "model_missing"
    MODEL_GATED = "model_gated"
    MODEL_UNSUPPORTED = "model_unsupported"
    MODEL_UNREADABLE = "model_unreadable"
    BAD_FLAG = "bad_flag"
    DRIVER_MISMATCH = "driver_mismatch"
    SHARED_MEMORY = "shared_memory"
    IMAGE_MISSING = "image_missing"
    KILLED = "killed"
    LOAD_TIMEOUT = "load_timeout"
    HUNG = "hung"
    """Its /health is green and it generates nothing."""
    SLEEP_FAILED = "sleep_failed"
    WAKE_FAILED = "wake_failed"
    UNREACHABLE = "unreachable"
    LAUNCH_FAILED = "launch_failed"
    DISK_FULL = "disk_full"
    OFFLINE = "offline"
    UNKNOWN = "unknown"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A diagnosis in words: what happened, what to do, and the engine's last log lines."""

    kind: FailureKind
    message: str
    hint: str
    log_tail: tuple[str, ...] = ()
    at: float = 0.0
    """Unix time, seconds."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error answer on the manager's socket, under the key `error`."""

    kind: str
    message: str
    hint: str = ""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """What was refused of one kind since the manager's start: how often, and the last one's words and Unix time."""

    kind: str
    count: int
    message: str
    at: float


class LoraRoom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine is started with for LoRA adapters: they come and go while it runs, this does not."""

    max_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """The highest rank an adapter may have; each slot is made for it."""
    max_loras: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """Slots in GPU memory: adapters that may be used at the same time, in one batch."""
    max_cpu_loras: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    """Adapters that are kept in host memory; at least `max_loras`."""


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One LoRA adapter that a worker should have loaded."""

    name: AdapterName
    """What requests call it by."""
    path: ModelPath
    """Its folder, relative to the models folder."""
    revision: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,64}\Z")]
    """Another one whenever its files are others."""
    rank: Annotated[int, msgspec.Meta(ge=1)]


class AdapterState(StrEnum):
    """How far a worker has come with an adapter."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class ObservedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that a worker should have loaded, and whether it has."""

    name: str
    revision: str
    state: AdapterState
    since: float
    reason: str = ""
    """Why it failed."""


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker that should exist. A closed struct: what is not here cannot be asked for.

    `args` holds engine flags by name without the leading dashes; only names in `engine_flags.ENGINE_FLAGS` pass.
    """

    id: WorkerId
    endpoint: Annotated[str, msgspec.Meta(max_length=128)]
    engine: Literal["vllm"] = "vllm"
    image: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    """An engine image by name, which must be on the manager's allow-list; None: the manager's default."""
    model: ModelPath
    """The weights' folder, relative to the models folder."""
    served_names: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=64)]
    gpus: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=96)], ...], msgspec.Meta(max_length=64)] = ()
    """GPU UUIDs; empty on a machine that serves from its CPUs."""
    gpu_memory_mib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """MiB promised to this worker on each of its GPUs."""
    max_model_len: Annotated[int, msgspec.Meta(ge=1)] | None = None
    is_length_chosen: bool = False
    """`max_model_len` was chosen to fit the memory; nobody asked for it."""
    args: dict[str, FlagValue] = {}
    lora: LoraRoom | None = None
    """The engine takes LoRA adapters while it runs; None: it takes none."""


class DesiredSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All the workers that should exist. Refused are a lower generation than the last one, and the same of another."""

    generation: Annotated[int, msgspec.Meta(ge=1)]
    workers: Annotated[tuple[WorkerSpec, ...], msgspec.Meta(max_length=256)] = ()
    residencies: dict[WorkerId, Residency] = {}
    """How warm each of `workers` should be; absent: HOT. Never GONE: who should be gone is not in `workers`.

    Only a READY worker falls asleep, after the gateway has drained it; the manager waits a moment for requests that
    still run and refuses if they do not end. A worker that does not run is never started in order to sleep: it stays
    WAITING until it is wanted HOT. One that is asleep at one level is not moved to the other.
    """
    sleepless: dict[WorkerId, str] = {}
    """Those of `workers` that must not sleep, and why: their engines are started without sleep mode."""
    soon: tuple[ModelPath, ...] = ()
    """Models to be started once others have made room, the most urgent first: worth reading into the page cache."""
    adapters: dict[WorkerId, Annotated[tuple[Adapter, ...], msgspec.Meta(max_length=1024)]] = {}
    """The LoRA adapters of each of `workers`: they come and go while it runs, so they are no part of `spec_hash`."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a DesiredSet that was taken."""

    manager: str
    generation: int


class GpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """One process that holds memory on a GPU; `worker` is set where it is one of ours."""

    pid: int
    memory_mib: int
    worker: str | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as NVML shows it; memory in MiB."""

    index: int
    uuid: str
    name: str
    memory_total_mib: int
    memory_used_mib: int
    memory_foreign_mib: int = 0
    """MiB in use that no worker of ours accounts for: other programs, and the driver's own reserve."""
    users: tuple[GpuUse, ...] = ()
    energy_mj: int | None = None
    """Millijoules since the driver was loaded, as NVML counts them; None where the card does not tell.

    It always grows, so it comes with the next change of anything else, or when a long poll ends."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine has, as the manager sees it; memory and disk in MiB."""

    launcher: Literal["docker", "process"]
    device: Literal["cuda", "cpu"]
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    memory_total_mib: int = 0
    memory_available_mib: int = 0
    models_disk_free_mib: int = 0
    images: tuple[str, ...] = ()
    """Engine images on the allow-list that are present on this machine."""
    engine: str = ""
    """What a worker without an image of its own will run: the default image's digest; empty where that is not known."""
    program: str = ""
    """Without containers: the engine's program, as a text that another installation differs in."""
    cpu_kv_cache_mib: int = 0
    """KV cache of an engine on the CPUs; 0: not told."""


class MeasuredMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine said and showed of its memory at its start; MiB on each GPU, None where it did not tell."""

    engine: str
    """The engine's identity: its image's digest, or the version it named."""
    weights_mib: int | None = None
    kv_cache_mib: int | None = None
    kv_cache_tokens: int | None = None
    max_model_len: int | None = None
    graphs_mib: int | None = None
    used_mib: int | None = None
    """By NVML, on the card where it holds most; None where NVML does not tell whose memory it is."""


class SleepFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's last sleep and its last wake were like, measured; None: not measured (yet)."""

    freed_mib: int | None = None
    """GPU memory that came back, MiB on each of its cards (the least of them); None without NVML."""
    sleep_seconds: float | None = None
    """From the order until the memory was back."""
    wake_seconds: float | None = None
    """From the order until it answered as before."""
    host_mib: int | None = None
    """Main memory that the engine took for the sleep, MiB in all; 0 at level 2 if nothing is kept."""


class ObservedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that exists, or should and does not yet."""

    spec: WorkerSpec
    spec_hash: str
    state: WorkerState
    residency: Residency
    """The last one that was proven: HOT in READY and SLEEPING, a level of sleep in ASLEEP and WAKING, else GONE."""
    since: float
    """Unix time at which `state` was entered, seconds."""
    socket: str
    """The engine's socket, relative to the engines folder."""
    reason: str = ""
    shortened: int | None = None
    """The context length that its engine is started with instead of the spec's: more did not fit. `reason` says so."""
    restarts: int = 0
    retry_at: float | None = None
    """Unix time of the next start, in BACKOFF."""
    failure: Failure | None = None
    """The last failure; kept while the worker starts again."""
    can_sleep: bool = False
    """Whether it may be asked to sleep; False while that is not known (before it was READY for the first time)."""
    can_sleep_deep: bool = False
    """Whether at level 2 as well."""
    no_sleep_reason: str = ""
    """Why it can't sleep, as a sentence; empty where `can_sleep`, or where it is not known yet."""
    broken_sleep: dict[Residency, str] = {}
    """The levels that failed an engine of its image and model in this manager's life, and how."""
    memory_mib: int | None = None
    """GPU memory its processes hold now, MiB on each of its cards (the most of them); None where NVML can't tell."""
    sleep: SleepFacts | None = None
    """None until it slept for the first time."""
    made_at: float = 0.0
    """Unix time at which its container or process was made, the same for every manager; 0: there is none."""
    is_unasked: bool = False
    """This manager has not asked it yet, in LOADING whether it serves, in READY what adapters it has: as before."""
    measured: MeasuredMemory | None = None
    """Once READY, where the log of its start was there to be read."""
    adapters: tuple[ObservedAdapter, ...] = ()
    """Those it should have, by name."""


class DownloadState(StrEnum):
    """What a download is doing."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DownloadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A repository on the model hub to bring under the models folder."""

    model: Annotated[str, msgspec.Meta(pattern=rf"^{HUB_PATTERN}\Z")]
    revision: Annotated[str, msgspec.Meta(pattern=r"^[\w][\w./-]{0,127}\Z")] = "main"


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """One download job; bytes are exact, the total is None until the hub has told it."""

    id: str
    model: str
    revision: str
    state: DownloadState
    bytes_done: int = 0
    bytes_total: int | None = None
    path: str | None = None
    """Once DONE: the folder relative to the models folder, `hub/ORG/NAME/COMMIT`."""
    failure: Failure | None = None
    since: float = 0.0


class ObservedSet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the manager sees. `version` grows with each change; `manager` is new with each start of it."""

    manager: str
    version: int
    generation: int
    """The last DesiredSet this manager took; 0: none since its start, so it removes nothing yet."""
    workers: tuple[ObservedWorker, ...] = ()
    host: HostFacts
    downloads: tuple[Download, ...] = ()
    refusals: tuple[Refused, ...] = ()
    """What was asked of it and refused, in sums: for the gateway's audit trail."""


class LogTail(msgspec.Struct, frozen=True, kw_only=True):
    """The last lines of a worker's log, oldest first."""

    worker: str
    lines: tuple[str, ...]


def spec_hash(spec: WorkerSpec) -> str:
    """What a worker is, without which one it is: the same for two specs that differ only in `id`."""
    anonymous = msgspec.structs.replace(spec, id="x")
    return hashlib.sha256(msgspec.json.encode(anonymous, order="deterministic")).hexdigest()[:16]

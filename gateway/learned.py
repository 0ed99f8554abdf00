"""What engines have shown of their memory, kept by model revision, engine, kind of GPU and flags, for the next start.

In memory for the planner, in SQLite for the next start of the gateway. The engine is its image's digest; where that is
not known before a start (a process), the newest measurement of any engine counts.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping

import msgspec
import structlog

from gateway.database.connection import Database
from gateway.database.saving import save_whenever
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.memory.estimate import Measured
from worker_manager.contract import GPU_CONTEXT_MIB, HostFacts, LoraRoom, ObservedSet, ObservedWorker
from worker_manager.engine_flags import FlagValue

log = structlog.get_logger(__name__)


class Key(msgspec.Struct, frozen=True):
    """What a measurement holds for."""

    model: str
    """Path and revision of the model's files."""
    engine: str
    gpu: str
    flags: str


class Learned:
    """All measurements; `version` grows with each new one."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[Key, tuple[float, Measured]] = {}
        self._seen: dict[str, float] = {}
        self._unsaved: dict[Key, tuple[float, Measured]] = {}
        self._wake = asyncio.Event()
        self.version = 0

    async def load(self) -> None:
        """Read all that was measured; what can't be read is left alone, as it will be measured again."""
        rows = await self._database.rows("SELECT model, engine, gpu, flags, measured, at FROM measured_memory")
        for model, engine, gpu, flags, text, at in rows:
            try:
                self._known[Key(model, engine, gpu, flags)] = (at, msgspec.json.decode(text, type=Measured))
            except msgspec.MsgspecError as problem:
                log.warning("measurement unreadable", model=model, problem=str(problem))
        self.version += 1

    def find(self, spec: EndpointSpec, model: ModelFacts, host: HostFacts, gpus: int) -> Measured | None:
        """What was measured of this model on so many GPUs of this machine with these flags."""
        if not host.gpus:
            return None
        largest = max(host.gpus, key=lambda gpu: (gpu.memory_total_mib, -gpu.index))
        key = Key(_model(model), host.engine, largest.name, flags_hash(spec.engine_args, gpus, spec.lora))
        if host.engine:
            known = self._known.get(key)
            return known[1] if known is not None else None
        same = [
            entry
            for other, entry in self._known.items()
            if (other.model, other.gpu, other.flags) == (key.model, key.gpu, key.flags)
        ]
        return max(same, key=lambda entry: entry[0])[1] if same else None

    def notice(self, observed: ObservedSet, model_at: Callable[[str], ModelFacts | None]) -> None:
        """Take over what workers have measured that were not looked at before; `model_at` knows a path's model."""
        names = {gpu.uuid: gpu.name for gpu in observed.host.gpus}
        for worker in observed.workers:
            if worker.measured is None or self._seen.get(worker.spec.id) == worker.since or not worker.spec.gpus:
                continue
            self._seen[worker.spec.id] = worker.since
            model, shown = model_at(worker.spec.model), measured_of(worker)
            if model is None or shown is None:
                continue
            gpu = names.get(worker.spec.gpus[0], "")
            flags = flags_hash(worker.spec.args, len(worker.spec.gpus), worker.spec.lora)
            self._keep(Key(_model(model), worker.measured.engine, gpu, flags), shown)
        self._seen = {worker.spec.id: at for worker in observed.workers if (at := self._seen.get(worker.spec.id))}

    def _keep(self, key: Key, shown: Measured) -> None:
        known = self._known.get(key)
        if known is not None and known[1] == shown:
            return
        self._known[key] = self._unsaved[key] = (self._clock(), shown)
        self.version += 1
        self._wake.set()
        log.info("memory learned", model=key.model, weights_mib=shown.weights_mib, rest_mib=shown.rest_mib)

    async def run(self) -> None:
        """Write what is new, until cancelled."""
        await save_whenever(self._wake, self.save, "measurement not saved")

    async def save(self) -> None:
        """Write what is new. Raises sqlite3.Error; then it stays to be written."""
        while self._unsaved:
            key, (at, shown) = next(iter(self._unsaved.items()))
            async with self._database.transaction() as write:
                await write.execute(
                    "INSERT OR REPLACE INTO measured_memory (model, engine, gpu, flags, measured, at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (key.model, key.engine, key.gpu, key.flags, msgspec.json.encode(shown).decode(), at),
                )
            if self._unsaved.get(key) == (at, shown):
                del self._unsaved[key]


def flags_hash(args: Mapping[str, FlagValue], gpus: int, lora: LoraRoom | None = None) -> str:
    """Whatever memory depends on beside model, engine and card; names, lengths and promises are not among it."""
    text = msgspec.json.encode([gpus, sorted(args.items()), *([lora] if lora is not None else [])])
    return hashlib.sha256(text).hexdigest()[:16]


def measured_of(worker: ObservedWorker) -> Measured | None:
    """A worker's figures as the next start can use them; None where one that matters is missing or cannot be.

    vLLM fills its part of the promise with KV cache, so what is neither weights nor cache is the engine's. By NVML it
    may be more than was promised; then that counts. With an exact cache the promise is not
    filled, and NVML alone tells.
    """
    shown = worker.measured
    if shown is None or shown.weights_mib is None or shown.kv_cache_mib is None:
        return None
    is_exact = "kv-cache-memory-bytes" in worker.spec.args
    held = max(shown.used_mib or 0, 0 if is_exact else worker.spec.gpu_memory_mib or 0)
    rest = held - shown.weights_mib - shown.kv_cache_mib
    if shown.weights_mib <= 0 or shown.kv_cache_mib <= 0 or rest < 0:
        return None
    return Measured(
        weights_mib=shown.weights_mib,
        rest_mib=max(rest, GPU_CONTEXT_MIB),
        kv_cache_mib=shown.kv_cache_mib,
        kv_cache_tokens=shown.kv_cache_tokens or 0,
        max_model_len=shown.max_model_len or 0,
    )


def _model(model: ModelFacts) -> str:
    return f"{model.path}@{model.revision}"

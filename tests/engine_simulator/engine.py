"""The engine's state: what runs, what waits, what is cached, whether it sleeps."""

import asyncio
import dataclasses
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from tests.engine_simulator.command_line import EngineArguments
from tests.engine_simulator.configuration import Simulation, SimulationFile
from tests.engine_simulator.gpu_memory import GpuMemory
from tests.engine_simulator.metrics import Metrics
from tests.engine_simulator.pacer import Pacer
from tests.engine_simulator.prefix_cache import BLOCK_TOKENS, PrefixCache

EXIT_CRASHED = 1
ABORT_TIMES_KEPT = 10_000
DEFAULT_KV_MIB = 1024.0


class Running(Protocol):
    """A generation, as the engine sees it."""

    tokens: int

    def begin(self, now: float) -> None:
        """Start the prefill: a place among the running ones is free."""
        ...

    def end(self, reason: str) -> None:
        """End the answer early, with what there is."""
        ...


class LoadedAdapter(Protocol):
    """A LoRA adapter, as the engine sees it."""

    @property
    def path(self) -> str:
        """The folder it was loaded from."""
        ...

    @property
    def seed(self) -> int:
        """Another one for other weights."""
        ...


class Engine:
    """One simulated engine. Not thread-safe: everything happens on its event loop."""

    def __init__(
        self, arguments: EngineArguments, file: SimulationFile, memory: GpuMemory, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.arguments = arguments
        self.memory = memory
        self.pacer = Pacer(loop)
        self.metrics = Metrics()
        self.cache = PrefixCache(file.current().prefix_cache_blocks, enabled=arguments.enable_prefix_caching)
        self.loop = loop
        self.started_at = int(time.time())
        self.sleep_level = 0
        self.weights_lost = False
        self.adapters: dict[str, LoadedAdapter] = {}
        self.responses: dict[str, dict[str, Any]] = {}
        self.paths: dict[str, int] = {}
        self.started = self.finished = self.aborted = 0
        self.abort_times: deque[float] = deque(maxlen=ABORT_TIMES_KEPT)
        self._file = file
        self._running: dict[Running, None] = {}
        self._waiting: deque[Running] = deque()
        self._changes_end = 0.0
        self._last_figures = b""

    @property
    def simulation(self) -> Simulation:
        """What `simulator.json` says now."""
        return self._file.current()

    @property
    def live(self) -> int:
        """Generations that run or wait."""
        return len(self._running) + len(self._waiting)

    @property
    def seed(self) -> int:
        """The seed of all answers; another one where the weights were lost in sleep and not loaded again."""
        return self.simulation.seed + (1_000_003 if self.weights_lost else 0)

    def seed_of(self, model: Any) -> int:
        """The seed of the answers of a model: each adapter has its own."""
        adapter = self.adapters.get(model) if isinstance(model, str) else None
        return self.seed ^ (adapter.seed if adapter is not None else 0)

    def served_as(self, model: Any) -> str:
        """The name that an answer carries."""
        return str(model) if model in self.adapters else self.arguments.served_names[0]

    def admit(self, generation: Running) -> None:
        """Let it run, or wait for a place: at most `--max-num-seqs` run at a time."""
        self.started += 1
        if len(self._running) < self.arguments.max_num_seqs:
            self._running[generation] = None
            generation.begin(time.monotonic())
        else:
            self._waiting.append(generation)

    def release(self, generation: Running, reason: str) -> None:
        """Count it as finished, or as aborted with the time, and let the next one run."""
        if generation in self._running:
            del self._running[generation]
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            return
        if reason == "abort":
            self.aborted += 1
            self.abort_times.append(time.time())
        else:
            self.finished += 1
        self.metrics.success[reason] = self.metrics.success.get(reason, 0) + 1
        while self._waiting and len(self._running) < self.arguments.max_num_seqs:
            following = self._waiting.popleft()
            self._running[following] = None
            following.begin(time.monotonic())

    def change(self, seconds: float, then: Callable[[], None]) -> None:
        """Do something that takes so long, after what was begun before it."""
        self._changes_end = max(self.loop.time(), self._changes_end) + seconds
        if self._changes_end <= self.loop.time():
            then()
        else:
            self.loop.call_at(self._changes_end, then)

    def end_all(self) -> None:
        """End every generation now, as vLLM does at sleep and at a TERM without a grace."""
        for generation in [*self._waiting, *self._running]:
            generation.end("abort")

    def crash(self, text: str) -> None:
        """Die at once, with a traceback in the log."""
        sys.stderr.write(f"ERROR [core.py:1207] EngineCore encountered a fatal error.\nERROR [core.py:1207] {text}\n")
        sys.stderr.flush()
        os._exit(EXIT_CRASHED)

    def stats(self) -> dict[str, Any]:
        """Give `GET /simulator/stats`: the figures that tests ask for."""
        return {
            "started": self.started,
            "finished": self.finished,
            "aborted": self.aborted,
            "live": self.live,
            "waiting": len(self._waiting),
            "abort_times": list(self.abort_times),
            "paths": self.paths,
            "prefix_cache_queries": self.cache.queries,
            "prefix_cache_hits": self.cache.hits,
            "prompt_tokens": self.metrics.prompt_tokens,
            "generation_tokens": self.metrics.generation_tokens,
            "sleep_level": self.sleep_level,
            "adapters": {name: adapter.path for name, adapter in self.adapters.items()},
            "seed": self.seed,
            "gpu_memory_mib": self.memory.held_mib,
            "pid": os.getpid(),
            "simulation": dataclasses.asdict(self.simulation),
        }

    def metrics_text(self) -> bytes:
        """Give `GET /metrics`; vLLM's front hears of its figures from what hangs, so they stand still then."""
        if not self.simulation.faults.hang_with_green_health or not self._last_figures:
            self._last_figures = self._figures()
        return self._last_figures

    def _figures(self) -> bytes:
        capacity = max(1, self.kv_tokens(self.simulation))
        used = sum(-(-generation.tokens // BLOCK_TOKENS) * BLOCK_TOKENS for generation in self._running)
        gauges = {
            "vllm:num_requests_running": len(self._running),
            "vllm:num_requests_waiting": len(self._waiting),
            "vllm:kv_cache_usage_perc": min(1.0, used / capacity),
        }
        counters = {
            "vllm:prefix_cache_queries_total": self.cache.queries,
            "vllm:prefix_cache_hits_total": self.cache.hits,
            "vllm:prompt_tokens_total": self.metrics.prompt_tokens,
            "vllm:generation_tokens_total": self.metrics.generation_tokens,
            "vllm:num_preemptions_total": 0,
        }
        return self.metrics.text(self.arguments.served_names[0], gauges, counters, self.sleep_level)

    def kv_mib(self, simulation: Simulation) -> float:
        """Size of the KV cache: as told, else what the claim leaves after the weights."""
        if self.arguments.kv_cache_memory_bytes is not None:
            return self.arguments.kv_cache_memory_bytes / (1 << 20)
        if simulation.kv_mib is not None:
            return simulation.kv_mib
        if not self.memory.has_gpu:
            return DEFAULT_KV_MIB
        return self.memory.held_mib - simulation.weights_mib - simulation.engine_mib

    def kv_tokens(self, simulation: Simulation) -> int:
        """How many tokens the KV cache holds."""
        return int(self.kv_mib(simulation) * 1024 / simulation.kv_kib_per_token)

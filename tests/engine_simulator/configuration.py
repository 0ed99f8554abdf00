"""What `simulator.json` in the model folder says: how fast the engine is, and what goes wrong with it.

The file is optional, and read again when it changes, so that a test can turn a fault on while the engine runs.
"""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "simulator.json"
LOOK_AGAIN_SECONDS = 0.05


class ConfigurationError(Exception):
    """`simulator.json` is not JSON, or has a field that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong; the default is nothing. Read afresh for every request, the first three at the start."""

    slow_load: float = 0.0
    """Seconds added to the load."""
    crash_at_load: str | None = None
    """A kind in `failures.TRACEBACKS`: its traceback is printed and the engine ends with status 1 (or hangs)."""
    crash_with_sleep_mode: bool = False
    """An engine that is started with `--enable-sleep-mode` ends so in the middle of its load."""
    crash_after_requests: int | None = None
    """The generation request after this many (since the start) ends the process in the middle of its answer."""
    hang_with_green_health: bool = False
    """Generation is accepted and never answered; `/health` stays 200."""
    cut_stream_after: int | None = None
    """Chunks after which the connection is closed in the middle of the body."""
    end_stream_without_done: bool = False
    """Streams end cleanly, but `data: [DONE]` is missing."""
    stall_stream_after: int | None = None
    """Chunks after which a stream says nothing more and stays open."""
    garbage_answer: bool | str = False
    """True: status 200 and a body that is no JSON and no SSE; "protocol": bytes that are not HTTP."""
    error_status: int | None = None
    """Generation is answered with this status and vLLM's error body."""
    refuse_sleep: bool = False
    """`/sleep` is answered with 500 and changes nothing."""
    memory_not_returned: bool = False
    """`/sleep` is answered with 200, but the GPU memory stays claimed."""
    hang_on_sleep: bool = False
    """`/sleep` is never answered and changes nothing."""
    refuse_wake: bool = False
    """`/wake_up` is answered with 500 and changes nothing."""
    hang_on_wake: bool = False
    """`/wake_up` is never answered and changes nothing."""
    bad_wake: bool = False
    """After `/wake_up` the same prompt gets another answer."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How the engine behaves when nothing goes wrong; times in seconds, memory in MiB."""

    kind: str = "generate"
    """"generate" (also speech), or "embed" (embeddings, scores and classes)."""
    seed: int = 0
    load_seconds: float = 0.05
    import_seconds: float = 0.0
    """Before the load, without any GPU memory: vLLM imports its libraries for so long."""
    ttft_seconds: float = 0.002
    prefill_tokens_per_second: float = 100_000.0
    tokens_per_second: float = 2000.0
    """Of one stream."""
    answer_tokens: int = 16
    """Length of an answer, where the request does not ask for less."""
    dimensions: int = 8
    """Of an embedding."""
    weights_mib: float = 100.0
    engine_mib: float = 0.0
    """Activations and CUDA graphs on a GPU, half and half: what vLLM's profiling takes from the KV cache."""
    kv_mib: float | None = None
    """Size of the KV cache; None: what is left of the claim after the weights, or 1024 without a GPU."""
    kv_kib_per_token: float = 16.0
    claim_mib: float | None = None
    """What is really taken on each GPU; None: what the flags ask for."""
    residual_mib: float = 1228.8
    """What stays on each GPU during sleep."""
    prefix_cache_blocks: int = 65_536
    """Blocks of 16 tokens."""
    version: str = "0.32.0"
    """What `/version` says."""
    sleep_seconds: float = 0.01
    wake_seconds: float = 0.01
    lora_load_seconds: float = 0.0
    """What loading a LoRA adapter takes."""
    hold: list[str] = field(default_factory=list)
    """An answer to a prompt with one of these in it stays without its last token for as long as it stands here."""
    faults: Faults = field(default_factory=Faults)
    faulty_before: float | None = None
    """Unix time: engines that start later have none of the faults, so that what replaces a broken one is well."""


def parse(text: str) -> Simulation:
    """Read the file's text. Raises `ConfigurationError`."""
    try:
        values: dict[str, Any] = json.loads(text)
        faults = Faults(**values.pop("faults", {}))
        return Simulation(**values, faults=faults)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{FILE_NAME}: {error}") from error


class SimulationFile:
    """The simulation that holds now; looks at the file's stamp at most every 50 ms."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = -LOOK_AGAIN_SECONDS
        self._current = Simulation()
        self._started = False
        self._born = time.time()

    def current(self) -> Simulation:
        """Give the simulation that holds; a file that is half-written, or wrong, leaves the last one in place."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._look()
            self._started = True
        return self._current

    def _look(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            self._current = self._as_of_birth(parse(self._path.read_text()))
            self._stamp = stamp
        except FileNotFoundError:
            self._current, self._stamp = Simulation(), None
        except ConfigurationError:
            if not self._started:
                raise

    def _as_of_birth(self, found: Simulation) -> Simulation:
        if found.faulty_before is None or self._born < found.faulty_before:
            return found
        return dataclasses.replace(found, faults=Faults())


def write(folder: Path, simulation: Simulation) -> None:
    """Put `simulator.json` into a model folder in one step, so that a running engine never sees half of it."""
    values = dataclasses.asdict(simulation)
    path = folder / FILE_NAME
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(values))
    temporary.rename(path)

"""What vLLM's log of a start says of its memory. Pure.

Lines as vLLM 0.32 prints them (v1/worker/gpu_worker, gpu_model_runner, cpu_worker, v1/core/kv_cache_utils). With
several GPUs each prints its own: the largest of what is taken and the smallest of what is left hold for all.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from worker_manager.contract import MeasuredMemory

MIB_PER_GIB = 1024
VERSION = re.compile(r"Initializing a V\d LLM engine \(v([^)\s]+)\)")
WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")
CACHE = re.compile(
    r"Available KV cache memory: ([\d.]+) GiB|reserved ([\d.]+) GiB memory for KV Cache as specified"
    r"|(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache"
)
GRAPHS = re.compile(r"Graph capturing finished in .*took ([\d.]+) GiB")
TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
LENGTH = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request")


def measured(lines: Sequence[str], image: str = "") -> MeasuredMemory | None:
    """The figures of the last start in a log; None where it tells of neither weights nor cache.

    On CPUs vLLM does not say what the weights took. `image`: what the engine runs as, where that is known; else the
    version it names itself.
    """
    last = next((at for at in range(len(lines) - 1, -1, -1) if VERSION.search(lines[at])), 0)
    said = lines[last:]
    weights, cache = _mib(said, WEIGHTS, max), _mib(said, CACHE, min)
    if weights is None and cache is None:
        return None
    version = VERSION.search(said[0]) if said else None
    return MeasuredMemory(
        engine=image or (f"vllm {version[1]}" if version else ""),
        weights_mib=weights,
        kv_cache_mib=cache,
        kv_cache_tokens=_count(said, TOKENS),
        max_model_len=_count(said, LENGTH),
        graphs_mib=_mib(said, GRAPHS, max),
    )


def _found(lines: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    return [next(group for group in match.groups() if group) for line in lines if (match := pattern.search(line))]


def _mib(lines: Sequence[str], pattern: re.Pattern[str], choose: Callable[[list[float]], float]) -> int | None:
    """The GiB of all lines that match, as MiB; None where none does, or one is no number."""
    try:
        found = [float(text) for text in _found(lines, pattern)]
    except ValueError:
        return None
    return math.ceil(choose(found) * MIB_PER_GIB) if found else None


def _count(lines: Sequence[str], pattern: re.Pattern[str]) -> int | None:
    found = _found(lines, pattern)
    digits = found[-1].replace(",", "") if found else ""
    return int(digits) if digits else None

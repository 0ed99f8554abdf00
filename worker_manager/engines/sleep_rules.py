"""Which engines may sleep, and how each version of vLLM is told to. Pure.

A sleep is an optimisation with a way back, so whatever is known to break is refused here, and everything else has to
prove itself each time (`sleeping`, `fingerprint`). Facts by vLLM's own issues, numbers as there:

- 0.14 to 0.16 free next to nothing (#32714, mended by #32947 in 0.17.0).
- An FP8 or NVFP4 KV cache: waking breaks for some models (#41564, #49237), some versions do not even start.
- Level 2 drops the weights; reading them again misses a draft model's (#52479) and crashes with LoRA (#39934, #48337).
- PyTorch's expandable segments and the allocator behind sleep exclude each other (pytorch #147851).
- Not on CPUs.

Some combinations do not even start (`start_refusal`): the allocator behind sleep is missing or fails (#35612, #21336),
or several GPUs exchange memory by CUDA IPC, which it does not allow (#45611). Such an engine starts without sleep mode.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from worker_manager.contract import Residency, WorkerSpec

FIRST_GOOD = (0, 17)
NO_ARENA = "expandable_segments:true"
LINE_CHARACTERS = 200
RELOADABLE = frozenset({"auto", "safetensors", "hf", "pt"})
"""Load formats whose weights are files that can be read again."""
TAGGED = re.compile(r"vllm[^:@]*:v?(\d+\.\d+[^@]*)")
"""A vLLM image whose tag tells the version."""
DIES_AT_START = re.compile(
    r"Sleep mode is not supported|Sleep mode can only be used|cumem allocator is not available|"
    r"CUDA Error: (?!out of memory).*cumem_allocator\.cpp|Expandable segments are not compatible with memory pool|"
    r"custom_all_reduce\.cuh:\d+ 'invalid argument'|unrecognized arguments:.*--enable-sleep-mode"
)
"""What an engine says that can't start with sleep mode and perhaps can without. Memory that ran out is not among it."""


class Call(msgspec.Struct, frozen=True):
    """One POST to the engine."""

    path: str
    query: dict[str, str] = {}
    body: dict[str, str] | None = None


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How one range of versions is told to sleep and to wake, each level by its steps."""

    since: tuple[int, int]
    sleep: dict[Residency, tuple[Call, ...]]
    wake: dict[Residency, tuple[Call, ...]]


DIALECTS = (
    Dialect(
        since=FIRST_GOOD,
        # parameters go in the query: vLLM does not read the body. No `mode`: newer versions are to drop it, and the
        # engine is drained anyway
        sleep={
            Residency.ASLEEP_1: (Call("/sleep", {"level": "1"}),),
            Residency.ASLEEP_2: (Call("/sleep", {"level": "2"}),),
        },
        wake={
            Residency.ASLEEP_1: (Call("/wake_up"), Call("/reset_prefix_cache")),
            # a plain /wake_up would answer 200 and generate garbage
            Residency.ASLEEP_2: (
                Call("/wake_up", {"tags": "weights"}),
                Call("/collective_rpc", body={"method": "reload_weights"}),
                Call("/wake_up", {"tags": "kv_cache"}),
                Call("/reset_prefix_cache"),
            ),
        },
    ),
)
"""Oldest first; a version newer than all of them is spoken to like the newest, and has to prove itself like any."""


def may_start(spec: WorkerSpec, env: Mapping[str, str], *, enabled: bool) -> bool:
    """Whether this engine is started so that it can sleep at level 1 at least."""
    return not refusal(spec, env, enabled=enabled)


def refusal(spec: WorkerSpec, env: Mapping[str, str], *, enabled: bool) -> str:
    """Why an engine of this description can't sleep, as far as can be said before it runs; empty if nothing is known.

    `env`: what the operator adds to every engine's environment; `enabled`: the setting.
    """
    if not spec.gpus:
        return "engines on the CPUs can't sleep"
    if not enabled:
        return "sleep is switched off (HOSTLER_SLEEP)"
    cache = str(spec.args.get("kv-cache-dtype", "auto")).lower()
    if cache.startswith(("fp8", "nvfp4")):
        return f"a KV cache of type {cache} is known to break on waking"
    arena = env.get("PYTORCH_CUDA_ALLOC_CONF", "") + env.get("PYTORCH_ALLOC_CONF", "")
    if NO_ARENA in arena.lower().replace(" ", ""):
        return "PyTorch's expandable segments (HOSTLER_ENGINE_ENV) and sleep exclude each other"
    if env.get("VLLM_SERVER_DEV_MODE", "1") != "1":
        return "HOSTLER_ENGINE_ENV takes away the routes that sleep needs (VLLM_SERVER_DEV_MODE)"
    return ""


def deep_refusal(spec: WorkerSpec) -> str:
    """Why an engine that can sleep at level 1 can't at level 2; empty if nothing is known."""
    if "speculative-config" in spec.args:
        return "level 2 does not bring a draft model's weights back"
    if spec.lora is not None:
        return "level 2 is known to crash with LoRA adapters"
    format_ = str(spec.args.get("load-format", "auto"))
    if format_ not in RELOADABLE:
        return f"weights of the load format {format_!r} are not read again after level 2"
    return ""


def image_refusal(image: str) -> str:
    """Why an engine of this image can't sleep, by the version in its tag; empty if it can, or the tag does not tell."""
    found = TAGGED.search(image)
    return version_refusal(found[1]) if found is not None else ""


def start_refusal(lines: Sequence[str]) -> str:
    """The line of the log of an engine that died at its start which says that sleep mode is why; empty if none does."""
    found = next((line for line in reversed(lines) if DIES_AT_START.search(line)), "")
    return f"it does not start with sleep mode: {found.strip()[:LINE_CHARACTERS]}" if found else ""


def version_refusal(version: str) -> str:
    """Why this version of vLLM can't sleep; empty if it can."""
    found = _parsed(version)
    if found is None:
        return f"the engine's version {version!r} is not one that is known"
    if found < FIRST_GOOD:
        least = ".".join(map(str, FIRST_GOOD))
        return f"vLLM {version} does not free its memory when it sleeps; {least} and later do"
    return ""


def dialect(version: str) -> Dialect:
    """How this version is spoken to; one that is not known like the newest."""
    found = _parsed(version)
    fitting = [each for each in DIALECTS if found is None or each.since <= found]
    return (fitting or list(DIALECTS))[-1]


def _parsed(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None

"""What an engine's /metrics says that the manager acts on. Pure; names are vLLM's."""

import math

import msgspec

from worker_manager.contract import Residency

LEVELS = {"weights_offloaded": Residency.ASLEEP_1, "discard_all": Residency.ASLEEP_2}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy an engine is, and how far it has come since its start; summed over its parts."""

    live: int
    """Requests that run or wait in the engine."""
    tokens: float
    """Generated, or read by a model that only reads."""
    cache: float
    """Part of the KV cache in use: it grows while a long prompt is read, before any token is counted."""
    level: Residency = Residency.HOT
    """What it says of its sleep."""

    def is_ahead_of(self, before: "Load") -> bool:
        """Whether the engine has worked since."""
        return self.tokens > before.tokens or self.cache > before.cache


def read(text: str) -> Load:
    """The figures out of Prometheus text; what is missing counts as 0, and so does what is no number."""
    sums: dict[str, float] = {}
    level = Residency.HOT
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        value = _number(rest)
        sums[name] = sums.get(name, 0.0) + value
        if name == "vllm:engine_sleep_state" and value > 0:
            level = next((found for word, found in LEVELS.items() if f'"{word}"' in rest), level)
    return Load(
        live=int(sums.get("vllm:num_requests_running", 0) + sums.get("vllm:num_requests_waiting", 0)),
        tokens=sums.get("vllm:generation_tokens_total", 0) + sums.get("vllm:prompt_tokens_total", 0),
        cache=sums.get("vllm:kv_cache_usage_perc", 0),
        level=level,
    )


def _number(rest: str) -> float:
    try:
        value = float(rest.rsplit(maxsplit=1)[-1])
    except (ValueError, IndexError):
        return 0.0
    return value if math.isfinite(value) else 0.0

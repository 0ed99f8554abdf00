"""How an endpoint's engine will be run, as far as memory depends on it.

What no flag says is the default of vLLM 0.32 (engine/arg_utils, `get_batch_defaults`): larger batches on cards of 70
GiB and more.
"""

from collections.abc import Mapping

import msgspec

from worker_manager.engine_flags import FlagValue

LARGE_CARD_MIB = 70 * 1024
HUGE_CARD_MIB = 160 * 1024
BLOCK_TOKENS = 16
EIGHT_BITS = ("fp8", "int8")
PARALLEL_FLAGS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's way of running."""

    tensor_parallel: int = 1
    stages: int = 1
    """Pipeline stages."""
    replicas: int = 1
    """Whole copies of the model (data parallelism)."""
    batch_tokens: int = 2048
    """Tokens of one step at most."""
    sequences: int = 256
    """Requests of one step at most."""
    block_tokens: int = BLOCK_TOKENS
    kv_dtype: str = "auto"
    in_32_bits: bool = False
    eager: bool = False
    """Without CUDA graphs."""
    no_windows: bool = False
    """Sliding windows are kept whole."""
    kv_cache_bytes: int | None = None
    """Exact size of the cache on each GPU, where a flag sets it."""

    @property
    def gpus(self) -> int:
        """GPUs of one worker."""
        return self.tensor_parallel * self.stages * self.replicas

    @property
    def scale_bytes(self) -> int:
        """Bytes of scales beside each head's keys and values of a token."""
        return 8 if self.kv_dtype.endswith("per_token_head") else 0

    def kv_bytes(self, checkpoint: int | None) -> int:
        """Bytes of one element of the cache; `checkpoint`: what the model's own quantisation says.

        Dtypes of fewer than eight bits are counted as eight.
        """
        if self.kv_dtype == "auto":
            return checkpoint or (4 if self.in_32_bits else 2)
        if self.kv_dtype.startswith(EIGHT_BITS) or "4" in self.kv_dtype:
            return 1
        return 4 if self.kv_dtype == "float32" else 2


def serving_of(args: Mapping[str, FlagValue], gpus: int, card_mib: int) -> Serving:
    """How flags run an engine on so many GPUs of at least so much memory.

    GPUs that no flag gives a part share each layer (tensor parallelism), as the worker manager has them do.
    """
    tensor, stages, replicas = (_count(args, name) or 1 for name in PARALLEL_FLAGS)
    if not any(name in args for name in PARALLEL_FLAGS):
        tensor = max(1, gpus)
    tokens, sequences = _batch_defaults(card_mib)
    sequences = _count(args, "max-num-seqs") or sequences
    kv_cache = _count(args, "kv-cache-memory-bytes")
    kv_dtype = args.get("kv-cache-dtype", "auto")
    return Serving(
        tensor_parallel=tensor,
        stages=stages,
        replicas=replicas,
        batch_tokens=_count(args, "max-num-batched-tokens") or tokens,
        sequences=sequences,
        block_tokens=_count(args, "block-size") or BLOCK_TOKENS,
        kv_dtype=str(kv_dtype),
        in_32_bits=args.get("dtype") in ("float", "float32"),
        eager=args.get("enforce-eager") is True,
        no_windows=args.get("disable-sliding-window") is True,
        kv_cache_bytes=kv_cache,
    )


def parallel_gpus(args: Mapping[str, FlagValue]) -> int | None:
    """GPUs that flags of parallelism ask for; None where there are none of them."""
    if not any(name in args for name in PARALLEL_FLAGS):
        return None
    return serving_of(args, 1, 0).gpus


def _batch_defaults(card_mib: int) -> tuple[int, int]:
    if card_mib >= HUGE_CARD_MIB:
        return 16384, 1024
    return (8192, 1024) if card_mib >= LARGE_CARD_MIB else (2048, 256)


def _count(args: Mapping[str, FlagValue], name: str) -> int | None:
    """A flag's value where it is a count within reason; the engine itself refuses others."""
    value = args.get(name)
    return value if type(value) is int and 0 < value < 2**50 else None

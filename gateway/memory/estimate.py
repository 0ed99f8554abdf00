"""What a worker needs on each of its GPUs, part by part, in MiB.

Weights and KV cache follow from the model's files (`weights`, `kv`). The rest can't be known before a run, so it is
estimated on the high side and replaced by what a run has shown (`Measured`):

* activations: the peak of vLLM's profiling step. For each token of the step the hidden state some times over and the
  widest inner layer (gate, up and their product); then the sampler's logits, in four bytes and some copies, for each
  sequence.
* CUDA graphs: about 15 MiB a layer with vLLM's default sizes.
* slots for LoRA adapters, where the endpoint has room for some (`lora`); vLLM counts them as weights.
* beyond torch: what CUDA holds before the engine takes anything (`GPU_CONTEXT_MIB`), libraries, and NCCL's buffers.
"""

import msgspec

from gateway.memory.config import ModelShape
from gateway.memory.kv import cache_bytes, longest_within
from gateway.memory.lora import slots_mib
from gateway.memory.serving import Serving
from gateway.memory.weights import Weights
from worker_manager.contract import GPU_CONTEXT_MIB, LoraRoom

MIB = 1024 * 1024
HIDDEN_COPIES = 6
INNER_COPIES = 3
LOGITS_BYTES = 4
LOGITS_COPIES = 5
ENCODER_MIB = 1024
"""An image or sound encoder's own activations and cache."""
GRAPHS_MIB_A_LAYER = 16
GRAPHS_MIB_LEAST = 256
LIBRARIES_MIB = 256
NCCL_MIB = 768
"""Buffers of NCCL and of vLLM's own all-reduce on each GPU of several."""
FACTOR_LIMITS = (0.25, 4.0)
"""A measured KV cache that differs more than this from the formula is not believed."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine of this model, flags, image and kind of GPU has shown; MiB on each GPU."""

    weights_mib: int
    rest_mib: int
    """All but weights and KV cache."""
    kv_cache_mib: int = 0
    kv_cache_tokens: int = 0
    max_model_len: int = 0


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a worker's memory on each GPU that do not depend on the length of requests; MiB."""

    weights_mib: int
    activations_mib: int
    graphs_mib: int
    other_mib: int
    """CUDA's own, libraries, buffers between GPUs."""
    lora_mib: int = 0
    """Slots for LoRA adapters."""
    kv_factor: float = 1.0
    """How much larger than by the formula the cache of a request has shown to be."""
    is_learned: bool = False

    @property
    def fixed_mib(self) -> int:
        """All of them."""
        return self.weights_mib + self.activations_mib + self.graphs_mib + self.other_mib + self.lora_mib


def needs(
    weights: Weights, shape: ModelShape, serving: Serving, measured: Measured | None, room: LoraRoom | None = None
) -> Needs:
    """The fixed parts: measured where a run has shown them, else derived. `room`: for LoRA adapters."""
    lora = 0
    if room is not None:
        lora = slots_mib(shape, room, serving.tensor_parallel, serving.stages, wide=serving.in_32_bits)
    derived = Needs(
        weights_mib=_mib(_weight_bytes(weights, shape, serving)),
        activations_mib=_mib(activation_bytes(shape, serving)) + (ENCODER_MIB if shape.has_encoder else 0),
        graphs_mib=0 if serving.eager else max(GRAPHS_MIB_LEAST, GRAPHS_MIB_A_LAYER * shape.depth),
        other_mib=GPU_CONTEXT_MIB + LIBRARIES_MIB + (NCCL_MIB if serving.gpus > 1 else 0),
        lora_mib=lora,
    )
    if measured is None:
        return derived
    graphs = min(derived.graphs_mib, max(0, measured.rest_mib - GPU_CONTEXT_MIB))
    other = min(derived.other_mib, measured.rest_mib - graphs)
    return Needs(
        weights_mib=max(0, measured.weights_mib - lora),  # what the engine says it loaded has the slots in it
        activations_mib=measured.rest_mib - graphs - other,
        graphs_mib=graphs,
        other_mib=other,
        lora_mib=min(lora, measured.weights_mib),
        kv_factor=_kv_factor(shape, serving, measured),
        is_learned=True,
    )


def activation_bytes(shape: ModelShape, serving: Serving) -> int:
    """The peak of one step of the largest size."""
    inner = shape.intermediate_size
    if shape.experts:
        expert = -(-shape.expert_size // serving.tensor_parallel)
        inner = max(inner, max(1, shape.experts_used) * (2 * expert + shape.hidden_size))
    a_token = 2 * (HIDDEN_COPIES * shape.hidden_size + INNER_COPIES * inner)
    return serving.batch_tokens * a_token + serving.sequences * shape.vocab_size * LOGITS_BYTES * LOGITS_COPIES


def kv_mib(shape: ModelShape, serving: Serving, need: Needs, tokens: int, requests: int = 1) -> int:
    """MiB of KV cache on each GPU for so many requests of so many tokens."""
    return _mib(cache_bytes(shape, serving, tokens, requests) * need.kv_factor)


def longest_mib(shape: ModelShape, serving: Serving, need: Needs, room_mib: int) -> int:
    """Tokens of the longest request that a cache of so many MiB on each GPU holds."""
    return longest_within(shape, serving, int(max(0, room_mib) * MIB / need.kv_factor), shape.longest)


def _weight_bytes(weights: Weights, shape: ModelShape, serving: Serving) -> int:
    size = weights.on_each(serving.tensor_parallel, shape.kv_heads, serving.stages)
    return size * 2 if serving.in_32_bits and not shape.quantised else size


def _kv_factor(shape: ModelShape, serving: Serving, measured: Measured) -> float:
    """Measured over derived bytes of a full-length request; 1 where there is no measurement to believe."""
    if not (measured.kv_cache_mib and measured.kv_cache_tokens and measured.max_model_len):
        return 1.0
    derived = cache_bytes(shape, serving, measured.max_model_len)
    if not derived:
        return 1.0
    requests = measured.kv_cache_tokens / measured.max_model_len
    factor = measured.kv_cache_mib * MIB / requests / derived
    low, high = FACTOR_LIMITS
    # never below one: where the cache held many requests, the block that is never handed out hardly counted
    return max(1.0, factor) if low <= factor <= high else 1.0


def _mib(size: float) -> int:
    return -(-int(size) // MIB)

"""What LoRA adapters take: slots on the GPUs, made at an engine's start, and the adapters themselves in host memory.

vLLM 0.32 wraps every linear layer, every expert, the embedding and the output layer (lora/model_manager,
`_create_lora_modules`), whatever modules its adapters change, and makes `max_loras` slots of `max_lora_rank` for each
(lora/layers, `create_lora_weights`), in the model's dtype:

* a linear layer: A of rank * input, B of output * rank. Fused layers have an A for each of their parts.
* over n GPUs A of a layer that is cut along its output is whole and its B cut (queries, keys, values, gate, up); of one
  that is cut along its input A is cut and B whole (attention's output, down).
* an expert: A and B for each of gate, up and down, cut along the inner width.
* the embedding and the output layer: vocabulary * rank and hidden * rank for each, whole.

Host memory holds up to `max_cpu_loras` adapters for each GPU's process, whole (lora/lora_model,
`from_local_checkpoint`).
"""

from gateway.memory.config import Kind, ModelShape
from worker_manager.contract import LoraRoom

MIB = 1024 * 1024
SIXTEEN_BITS = 2


def slots_mib(
    shape: ModelShape, room: LoraRoom, tensor_parallel: int = 1, stages: int = 1, *, wide: bool = False
) -> int:
    """MiB of all slots on each GPU; `wide`: the model is served in 32 bits."""
    widths = _layers(shape, tensor_parallel) // stages + _ends(shape)
    return _mib(room.max_loras * room.max_rank * widths * (2 * SIXTEEN_BITS if wide else SIXTEEN_BITS))


def host_mib(shape: ModelShape, room: LoraRoom, processes: int = 1) -> int:
    """MiB of host memory for `max_cpu_loras` adapters of the highest rank that change every layer (not the ends)."""
    return _mib(room.max_cpu_loras * room.max_rank * _layers(shape, 1) * SIXTEEN_BITS * max(1, processes))


def _layers(shape: ModelShape, gpus: int) -> int:
    """The widths of all layers' matrices A and B on each GPU, added up: elements for each rank of a slot."""
    hidden = shape.hidden_size
    queries, out = shape.attention_heads * shape.head_dim, shape.attention_heads * shape.value_head_dim
    keys, values = shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_head_dim
    if any(group.kind is Kind.LATENT for group in shape.layers):
        # projections into and out of the latent space stand in for keys and values
        keys = values = max(queries, shape.latent_dim)
    attention = sum(hidden + _cut(width, gpus) for width in (queries, keys, values)) + _cut(out, gpus) + hidden
    inner = 3 * (hidden + _cut(shape.intermediate_size, gpus))
    if shape.experts:
        inner += shape.experts * 3 * (hidden + _cut(shape.expert_size, gpus))
    return shape.depth * (attention + inner)


def _ends(shape: ModelShape) -> int:
    """The embedding's and the output layer's."""
    return 2 * (shape.vocab_size + shape.hidden_size)


def _cut(width: int, gpus: int) -> int:
    return -(-width // gpus)


def _mib(size: int) -> int:
    return -(-size // MIB)

"""What a model's weights take on each GPU, from the headers of its safetensors files.

The header of a file names every tensor with its dtype, shape and place (https://huggingface.co/docs/safetensors), so
the bytes are exact whatever the weights are quantised to. How tensor parallelism cuts them is vLLM's
(model_executor/layers): linear layers, embeddings and experts are cut by the number of GPUs; keys and values by no more
than the model has KV heads; what is one number for each channel (norms, biases), routers, the projections into a latent
space and image or sound encoders may be whole on every GPU, and are counted so.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.memory.config import ModelShape

LENGTH_BYTES = 8
"""A safetensors file begins with the header's length, little-endian."""
HEADER_LIMIT = 100_000_000
"""Bytes; the format allows no longer header."""
WHOLE = re.compile(
    r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|audio_tower|audio_encoder|multi_modal_projector|mm_projector"
    r"|embed_vision|embed_audio)\.|\.(kv_a_proj_with_mqa|q_a_proj|fused_qkv_a_proj|indexer\..*|gate|router|shared_expert_gate"
    r"|block_sparse_moe\.gate|weights_proj)\.(weight|bias)$|\.(conv1d|A_log|dt_bias|D)(\.|$)"
)
KEYS_AND_VALUES = re.compile(r"\.(k_proj|v_proj|key|value)\.")
OUTPUT_LAYER = re.compile(r"(^|\.)lm_head\.")
WIDE = {"F64": 8, "F32": 4}
"""Dtypes in more than sixteen bits, which vLLM serves in sixteen unless told otherwise; bytes of an element."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a header; `size` in bytes as it lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a model's weights as they are served, by how tensor parallelism cuts them."""

    cut: int = 0
    """Divided by the number of GPUs."""
    keys_and_values: int = 0
    """Divided by the number of GPUs, but at most by the number of KV heads."""
    whole: int = 0
    """On every GPU."""
    on_disk: int = 0
    """Bytes of the files, which may hold more than is loaded."""
    is_exact: bool = False
    """From headers; else the files' sizes were all there is."""

    @property
    def total(self) -> int:
        """Bytes on a single GPU."""
        return self.cut + self.keys_and_values + self.whole

    def on_each(self, gpus: int, kv_heads: int, stages: int = 1) -> int:
        """Bytes on each of `gpus` that share every layer; `stages` of such groups share the layers between them.

        The stage with the embeddings has more than its share: a tenth is added for it.
        """
        shared = -(-self.cut // gpus) + -(-self.keys_and_values // min(gpus, max(1, kv_heads))) + self.whole
        return shared if stages <= 1 else -(-shared * 11 // (stages * 10))


class HeaderError(ValueError):
    """Bytes that are not the header of a safetensors file."""


def header_length(first: bytes) -> int:
    """The length of the header that follows the first eight bytes. Raises HeaderError."""
    length = int.from_bytes(first, "little")
    if len(first) != LENGTH_BYTES or not 2 <= length <= HEADER_LIMIT:  # noqa: PLR2004 - the shortest JSON object
        raise HeaderError("the file does not begin with the length of a header")
    return length


def read_header(header: bytes) -> list[Tensor]:
    """The tensors a header names. Raises HeaderError."""
    try:
        entries: Any = json.loads(header)
        return [_tensor(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise HeaderError(f"the header cannot be read ({problem})") from None


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    size = end - begin
    if type(size) is not int or size < 0:
        raise HeaderError(f"the place of {name} cannot be")
    return Tensor(name, str(entry["dtype"]), tuple(int(width) for width in entry["shape"]), size)


def sum_up(tensors: Iterable[Tensor], shape: ModelShape | None, on_disk: int) -> Weights:
    """The weights by how they are cut."""
    cut = keys_and_values = whole = 0
    for tensor in tensors:
        if shape is not None and shape.tied and OUTPUT_LAYER.search(tensor.name):
            continue  # vLLM uses the embedding and skips it
        size = _served(tensor, shape)
        if len(tensor.shape) <= 1 or WHOLE.search(tensor.name):
            whole += size
        elif KEYS_AND_VALUES.search(tensor.name):
            keys_and_values += size
        else:
            cut += size
    return Weights(cut=cut, keys_and_values=keys_and_values, whole=whole, on_disk=on_disk, is_exact=True)


def _served(tensor: Tensor, shape: ModelShape | None) -> int:
    """Bytes once loaded: what is in more than sixteen bits is served in sixteen, but for scales and the like."""
    width = WIDE.get(tensor.dtype)
    if width is None or len(tensor.shape) <= 1 or (shape is not None and shape.quantised):
        return tensor.size
    return tensor.size * 2 // width

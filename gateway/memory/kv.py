"""What the KV cache takes on each GPU.

Formulas and rounding are vLLM 0.32's (v1/kv_cache_interface, v1/core/kv_cache_utils). One token of one layer takes
`heads on this GPU * (key width + value width) * bytes of an element`; with multi-head latent attention one vector, the
same on every GPU. Heads are cut by tensor parallelism down to one, then repeated. The
cache is handed out in blocks of tokens. Where layers differ in kind, they are put in groups of equally many, since all
groups draw blocks of one size from one pool; what a group lacks of layers is padding.
"""

from gateway.memory.config import Kind, Layers, ModelShape
from gateway.memory.serving import Serving

GROUPS_NEARLY_EQUAL = 1.5
"""Kinds whose numbers of layers differ by less are padded to the larger number (vLLM's own factor)."""
STATE_BLOCKS = 2
"""States that a request may hold in each layer at once: with prefix caching the running one and the last saved."""
BATCHES_IN_FLIGHT = 2
"""With asynchronous scheduling (vLLM's default) tokens of two steps are held before a window's old ones are let go."""
FP8_LATENT_BYTES = 656
"""`fp8_ds_mla`: 512 bytes of values, 16 of scales, 128 of positions for each token and layer (vLLM's FlashMLA)."""


def token_bytes(shape: ModelShape, serving: Serving) -> int:
    """Bytes that one more token takes on each GPU while every layer keeps it (the first tokens of a request)."""
    return sum(group.count * _layer_token(shape, serving, group) for group in shape.layers)


def request_bytes(shape: ModelShape, serving: Serving, tokens: int) -> int:
    """Bytes on each GPU that a request of so many tokens takes at most."""
    blocks, block_bytes = _blocks_of_request(shape, serving, tokens)
    return blocks * block_bytes


def cache_bytes(shape: ModelShape, serving: Serving, tokens: int, requests: int = 1) -> int:
    """Bytes on each GPU of a cache for so many requests of so many tokens; one block more is never handed out."""
    blocks, block_bytes = _blocks_of_request(shape, serving, tokens)
    return (blocks * requests + 1) * block_bytes if blocks else 0


def _blocks_of_request(shape: ModelShape, serving: Serving, tokens: int) -> tuple[int, int]:
    """Blocks of a request over all groups, and the bytes of a block over all layers of a group."""
    groups = _stage(shape.layers, serving.stages)
    if not groups:
        return 0, 0
    attention = [_layer_token(shape, serving, group) * serving.block_tokens for group in groups]
    # vLLM makes an attention block as large as a state
    page = max([*attention, *(_state_page(group, serving) for group in groups), 1])
    size = _group_size(groups)
    blocks = sum(_blocks(shape, serving, group, tokens, page) * -(-group.count // size) for group in groups)
    return blocks, page * size


def longest_within(shape: ModelShape, serving: Serving, room: int, limit: int) -> int:
    """Tokens of the longest request, `limit` at most, for which a cache of `room` bytes on each GPU does; 0 if none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if cache_bytes(shape, serving, middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _stage(layers: tuple[Layers, ...], stages: int) -> list[Layers]:
    """The layers of one pipeline stage, the fullest."""
    return [Layers(group.kind, -(-group.count // stages), group.window, group.state_bytes) for group in layers]


def _layer_token(shape: ModelShape, serving: Serving, group: Layers) -> int:
    """Bytes of one token in one layer on one GPU."""
    if group.kind is Kind.STATE:
        return 0
    width = serving.kv_bytes(shape.kv_bytes)
    if group.kind is Kind.LATENT:
        latent = shape.latent_dim * width
        return (max(latent, FP8_LATENT_BYTES) if width == 1 else latent) + shape.indexer_bytes
    heads = max(1, -(-shape.kv_heads // serving.tensor_parallel))
    return heads * ((shape.head_dim + shape.value_head_dim) * width + serving.scale_bytes)


def _state_page(group: Layers, serving: Serving) -> int:
    return -(-group.state_bytes // serving.tensor_parallel)


def _group_size(groups: list[Layers]) -> int:
    """Layers of a group (vLLM, `_get_kv_cache_groups_uniform_page_size`)."""
    counts = [group.count for group in groups]
    return max(counts) if max(counts) < min(counts) * GROUPS_NEARLY_EQUAL else min(counts)


def _blocks(shape: ModelShape, serving: Serving, group: Layers, tokens: int, page: int) -> int:
    """Blocks of one group for one request."""
    if group.kind is Kind.STATE:
        return STATE_BLOCKS
    block = max(serving.block_tokens, page // max(1, _layer_token(shape, serving, group)))
    in_flight = BATCHES_IN_FLIGHT * serving.batch_tokens
    if group.kind is Kind.SLIDING and not serving.no_windows:
        return -(-min(group.window - 1 + in_flight, tokens) // block) + 1
    if group.kind is Kind.CHUNKED:
        return -(-min(group.window + in_flight, tokens) // block)
    return -(-tokens // block)

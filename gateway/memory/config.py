"""A model's config.json as numbers: layers by what they keep for each token, heads, widths, length.

The names of the fields, and which of several wins, are those of vLLM 0.32
(transformers_utils/model_arch_config_convertor and config/model); configurations of models with more than text hold
theirs below `text_config`. Where a configuration does not say that a layer keeps less, it is taken to keep everything:
the mistake must be on the safe side.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from gateway.memory.states import state_bytes

LARGEST = 10**9
"""No width, count or length of a model is larger; more is a damaged file."""
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
ENCODERS = ("vision_config", "audio_config", "speech_config", "vision_tower_config")
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
KV_HEAD_KEYS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
EXPERT_KEYS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
EXPERTS_USED_KEYS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")
SCALED_ALREADY = frozenset(
    {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope"}
)
"""Kinds of RoPE scaling whose factor `max_position_embeddings` contains (vLLM, `_get_and_verify_max_len`)."""
SLIDING_EVERYWHERE = frozenset({"mistral", "phi3", "starcoder2", "mixtral"})
"""Kinds of models all of whose layers slide where the configuration names a window and no pattern."""
PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""One layer in so many has full attention, the others a window, where no `layer_types` tell (Transformers' own
configuration classes of these models)."""
STATE_LAYERS = frozenset({"linear_attention", "mamba", "mamba2", "m", "recurrent", "conv"})


class Kind(StrEnum):
    """What a layer keeps for a request."""

    FULL = "full"
    """Keys and values of every token."""
    SLIDING = "sliding"
    """Keys and values of the last `window` tokens."""
    CHUNKED = "chunked"
    """Keys and values of the running chunk of `window` tokens."""
    LATENT = "latent"
    """One latent vector for every token (multi-head latent attention), the same on every GPU."""
    STATE = "state"
    """A state of fixed size, however long the request is (Mamba, linear attention)."""


class Layers(msgspec.Struct, frozen=True):
    """Layers of one kind; `window` in tokens, `state_bytes` of one request and layer over all GPUs together."""

    kind: Kind
    count: int
    window: int = 0
    state_bytes: int = 0


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a model that memory depends on."""

    model_type: str = ""
    hidden_size: int
    intermediate_size: int = 0
    layers: tuple[Layers, ...]
    attention_heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    vocab_size: int = 0
    longest: int
    """Tokens of context the model was made for."""
    latent_dim: int = 0
    """Elements of a token's latent vector in each LATENT layer."""
    indexer_bytes: int = 0
    """Bytes that the sparse indexer of a LATENT layer keeps for each token beside it."""
    kv_bytes: int | None = None
    """Bytes of one element of the cache where the checkpoint itself says so (its scheme is eight bits)."""
    experts: int = 0
    experts_used: int = 0
    expert_size: int = 0
    """Intermediate width of one expert."""
    quantised: bool = False
    quant_block: int = 1
    """Widths on one GPU must stay multiples of this where weights are quantised in blocks."""
    tied: bool = False
    """The output layer is the embedding."""
    has_encoder: bool = False
    """It takes images or sound too."""

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return sum(group.count for group in self.layers)


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The numbers in a config.json; None where it does not hold those that matter. Never raises for what it holds."""
    text = _text_config(config)
    depth = _number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    if not depth or not hidden or not heads:
        return None
    head_dim = _number(text, "head_dim", "hidden_size_per_head") or hidden // heads
    latent = _number(text, "kv_lora_rank") or 0
    quantisation = _mapping(config, "quantization_config") or _mapping(text, "quantization_config")
    moe_size = _number(text, "moe_intermediate_size", "expert_intermediate_size") or 0
    intermediate = _number(text, "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim") or 4 * hidden
    experts = _number(text, *EXPERT_KEYS) or 0
    return ModelShape(
        model_type=_text(text, "model_type") or _text(config, "model_type"),
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=_layers(text, depth, is_latent=latent > 0),
        attention_heads=heads,
        kv_heads=min(_number(text, *KV_HEAD_KEYS) or heads, heads),
        head_dim=head_dim,
        value_head_dim=_number(text, "v_head_dim") or head_dim,
        vocab_size=_number(text, "vocab_size") or _number(config, "vocab_size") or 0,
        longest=_longest(config, text),
        latent_dim=latent + (_number(text, "qk_rope_head_dim") or 0) if latent else 0,
        indexer_bytes=_indexer_bytes(text),
        kv_bytes=_checkpoint_kv_bytes(quantisation),
        experts=experts,
        experts_used=_number(text, *EXPERTS_USED_KEYS) or 0,
        expert_size=(moe_size or intermediate) if experts else 0,
        quantised=bool(quantisation),
        quant_block=_quant_block(quantisation),
        tied=_flag(text, "tie_word_embeddings", default=_flag(config, "tie_word_embeddings")),
        has_encoder=any(_mapping(config, name) for name in ENCODERS),
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in TEXT_CONFIGS:
        inner = _mapping(config, name)
        if inner:
            return _text_config(inner)
    return config


def _layers(text: Mapping[str, Any], depth: int, *, is_latent: bool) -> tuple[Layers, ...]:
    """Layers by kind, in a fixed order."""
    window = _number(text, "sliding_window") or 0
    chunk = _number(text, "attention_chunk_size") or 0
    states = state_bytes(text)
    kinds = _kinds(text, depth, window)
    shared = _number(text, "num_kv_shared_layers") or 0
    if 0 < shared < depth:  # the last layers use the keys and values of earlier ones (Gemma 3n)
        kinds = kinds[: depth - shared]
    found: list[Layers] = []
    for kind in Kind:
        count = sum(one is kind for one in kinds)
        if not count:
            continue
        width = {Kind.SLIDING: window, Kind.CHUNKED: chunk}.get(kind, 0)
        group = Layers(Kind.LATENT if kind is Kind.FULL and is_latent else kind, count, width)
        found.append(msgspec.structs.replace(group, state_bytes=states) if kind is Kind.STATE else group)
    return tuple(found)


def _kinds(text: Mapping[str, Any], depth: int, window: int) -> list[Kind | None]:
    """Of each layer; None for one that keeps nothing."""
    named = _layer_names(text, depth)
    if named is not None:
        return [_kind_of(name, text, window) for name in named]
    kind = _text(text, "model_type")
    if window and kind in PATTERNS:
        every = _number(text, "sliding_window_pattern") or PATTERNS[kind]
        return [Kind.FULL if (index + 1) % every == 0 else Kind.SLIDING for index in range(depth)]
    if window and kind in SLIDING_EVERYWHERE and _flag(text, "use_sliding_window", default=True):
        return [Kind.SLIDING] * depth
    return [Kind.FULL] * depth


def _layer_names(text: Mapping[str, Any], depth: int) -> Sequence[str] | None:
    """The kind of each layer in the configuration's own words, one for each; None where it has none."""
    for name in ("layer_types", "layers_block_type"):
        words = text.get(name)
        if isinstance(words, list) and len(words) == depth and all(isinstance(word, str) for word in words):
            return words
    pattern = text.get("hybrid_override_pattern")  # NemotronH: M Mamba, * attention, - and E neither
    if isinstance(pattern, str) and len(pattern) == depth:
        return [{"M": "mamba", "*": "attention"}.get(letter, "none") for letter in pattern]
    every = _number(text, "full_attention_interval")
    if every and "linear_num_value_heads" in text:
        return ["full_attention" if (index + 1) % every == 0 else "linear_attention" for index in range(depth)]
    offset, period = text.get("attn_layer_offset"), _number(text, "attn_layer_period")
    if period and isinstance(offset, int):  # Jamba
        return ["attention" if index % period == offset else "mamba" for index in range(depth)]
    return None


def _kind_of(name: str, text: Mapping[str, Any], window: int) -> Kind | None:
    if name in STATE_LAYERS:
        return Kind.STATE
    if name == "sliding_attention" and window and _flag(text, "use_sliding_window", default=True):
        return Kind.SLIDING
    if name == "chunked_attention" and _number(text, "attention_chunk_size"):
        return Kind.CHUNKED
    return None if name in ("none", "mlp", "moe") else Kind.FULL


def _longest(config: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    """Tokens of context, as vLLM derives them; 2048 where nothing tells (its own default)."""
    lengths = [found for found in (_number(text, name) for name in LENGTH_KEYS) if found]
    longest = _number(text, "model_max_length") or min(lengths, default=2048)
    scaling = _mapping(text, "rope_scaling") or _mapping(text, "rope_parameters")
    kind = _text(scaling, "rope_type") or _text(scaling, "type") or "default"
    if kind in ("longrope", "su"):
        return _number(text, "original_max_position_embeddings") or longest
    factor = scaling.get("factor")
    if kind in SCALED_ALREADY or "gemma3" in _text(config, "model_type") or not isinstance(factor, (int, float)):
        return longest
    return int(longest * min(max(factor, 1), 1024))


def _indexer_bytes(text: Mapping[str, Any]) -> int:
    """DeepSeek V3.2's indexer: eight bits for each of `index_head_dim`, and a scale of four bytes for each 128."""
    width = _number(text, "index_head_dim") or 0
    return width + -(-width // 128) * 4


def _checkpoint_kv_bytes(quantisation: Mapping[str, Any]) -> int | None:
    scheme = _mapping(quantisation, "kv_cache_scheme")
    name = quantisation.get("kv_cache_quant_algo")
    return 1 if _number(scheme, "num_bits") == 8 or name == "FP8" else None  # noqa: PLR2004 - eight bits


def _quant_block(quantisation: Mapping[str, Any]) -> int:
    """The block along the width that is cut: vLLM refuses a cut through one (fp8 in blocks, AWQ, GPTQ)."""
    sizes = quantisation.get("weight_block_size")
    if isinstance(sizes, list) and sizes and all(_is_number(size) for size in sizes):
        return int(max(sizes))
    return _number(quantisation, "group_size") or 1


def _mapping(part: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = part.get(name)
    return found if isinstance(found, dict) else {}


def _text(part: Mapping[str, Any], name: str) -> str:
    found = part.get(name)
    return found if isinstance(found, str) else ""


def _flag(part: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    found = part.get(name)
    return found if isinstance(found, bool) else default


def _number(part: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a count within reason."""
    return next((int(part[name]) for name in names if _is_number(part.get(name))), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST

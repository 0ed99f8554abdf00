"""The tensors that a model of a configuration has, and safetensors files that hold their headers and no weights."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.memory.weights import Tensor

Named = Iterator[tuple[str, tuple[int, ...]]]


def tensors(config: Mapping[str, Any], dtype: str = "BF16") -> list[Tensor]:
    """Name every tensor of a decoder of the Llama, Qwen, Mixtral, Phi, Gemma 2 or DeepSeek kind, in two bytes each."""
    found = []
    for name, shape in _named(config):
        size = 2
        for width in shape:
            size *= width
        found.append(Tensor(name, dtype, shape, size))
    return found


def write(folder: Path, config: Mapping[str, Any]) -> Path:
    """Make a model's folder: config.json, and one sparse file with a true header and nothing behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors(config):
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return folder


def _named(config: Mapping[str, Any]) -> Named:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for name, shape in _layer(config, index):
            yield layer + name, shape


def _layer(config: Mapping[str, Any], index: int) -> Named:
    hidden = config["hidden_size"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for norm in norms:
        yield f"{norm}.weight", (hidden,)
    yield from _latent_attention(config) if config.get("kv_lora_rank") else _attention(config)
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if experts and index >= config.get("first_k_dense_replace", 0):
        yield "mlp.gate.weight", (experts, hidden)
        width = config.get("moe_intermediate_size") or config["intermediate_size"]
        for expert in range(experts):
            yield from _mlp(f"mlp.experts.{expert}", hidden, width)
        if config.get("n_shared_experts"):
            yield from _mlp("mlp.shared_experts", hidden, width * config["n_shared_experts"])
    else:
        yield from _mlp("mlp", hidden, config["intermediate_size"])


def _mlp(prefix: str, hidden: int, width: int) -> Named:
    yield f"{prefix}.gate_proj.weight", (width, hidden)
    yield f"{prefix}.up_proj.weight", (width, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, width)


def _attention(config: Mapping[str, Any]) -> Named:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    sizes = {"q": heads * width, "k": config["num_key_value_heads"] * width, "v": config["num_key_value_heads"] * width}
    for name, size in sizes.items():
        yield f"self_attn.{name}_proj.weight", (size, hidden)
        if config["model_type"] == "qwen2":
            yield f"self_attn.{name}_proj.bias", (size,)
    yield "self_attn.o_proj.weight", (hidden, heads * width)
    if config["model_type"].startswith("qwen3"):
        yield "self_attn.q_norm.weight", (width,)
        yield "self_attn.k_norm.weight", (width,)


def _latent_attention(config: Mapping[str, Any]) -> Named:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    rope, nope, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    yield "self_attn.q_proj.weight", (heads * (nope + rope), hidden)
    yield "self_attn.kv_a_proj_with_mqa.weight", (rank + rope, hidden)
    yield "self_attn.kv_a_layernorm.weight", (rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (nope + value), rank)
    yield "self_attn.o_proj.weight", (hidden, heads * value)

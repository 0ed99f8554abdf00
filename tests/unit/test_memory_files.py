"""What is read from a model's own files: config.json, headers, and which files count."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.endpoints.weight_files import INDEX
from gateway.memory.config import Kind, ModelShape, read_shape
from gateway.memory.kv import request_bytes, token_bytes
from gateway.memory.serving import Serving, serving_of
from gateway.memory.weights import HeaderError, Tensor, header_length, read_header, sum_up
from tests.support.model_headers import tensors, write

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 640,
    "max_position_embeddings": 2048,
}


def shape(**fields: Any) -> ModelShape:
    found = read_shape({**TINY, **fields})
    assert found is not None
    return found


def kinds(found: ModelShape) -> dict[str, int]:
    return {group.kind.value: group.count for group in found.layers}


def facts(root: Path, name: str = "local/tiny") -> ModelFacts:
    found = ModelsFolder(root).find(EndpointSpec(name="a", model=name))
    assert found is not None
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = [
    *TINY,
    *(
        "layer_types",
        "sliding_window",
        "rope_scaling",
        "quantization_config",
        "text_config",
        "kv_lora_rank",
        "head_dim",
    ),
    *("attn_layer_offset", "attn_layer_period", "hybrid_override_pattern", "num_kv_shared_layers", "mamba_d_state"),
]


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_configuration_makes_the_reader_fall(fields: dict[str, Any]) -> None:
    found = read_shape({**TINY, **fields})
    if found is not None:
        assert request_bytes(found, Serving(), 100) >= 0


def test_a_configuration_without_the_numbers_that_matter_gives_no_shape() -> None:
    assert read_shape({"model_type": "llama"}) is None
    assert read_shape({**TINY, "num_hidden_layers": True}) is None
    assert read_shape({**TINY, "hidden_size": 10**12}) is None


def test_windows_are_seen_where_a_model_has_them_and_only_there() -> None:
    assert kinds(shape(model_type="mistral", sliding_window=16)) == {"sliding": 2}
    assert kinds(shape(model_type="mistral", sliding_window=None)) == {"full": 2}
    assert kinds(shape(model_type="qwen2", sliding_window=16, use_sliding_window=False)) == {"full": 2}
    assert kinds(shape(model_type="gemma2", sliding_window=16)) == {"full": 1, "sliding": 1}
    assert kinds(shape(model_type="unheard-of", sliding_window=16)) == {"full": 2}, "better too much than too little"
    named = shape(layer_types=["sliding_attention", "chunked_attention"], sliding_window=16, attention_chunk_size=32)
    assert kinds(named) == {"sliding": 1, "chunked": 1}


def test_states_are_counted_for_layers_without_a_growing_cache() -> None:
    """Qwen3-Next's own numbers: a conv of 8192 * 3 and 32 heads of 128 * 128, two and four bytes."""
    found = shape(
        full_attention_interval=2,
        linear_num_value_heads=32,
        linear_num_key_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
    )
    assert kinds(found) == {"full": 1, "state": 1}
    [state] = [group for group in found.layers if group.kind is Kind.STATE]
    assert state.state_bytes == 8192 * 3 * 2 + 32 * 128 * 128 * 4
    mamba = shape(hybrid_override_pattern="M*", mamba_num_heads=4, mamba_head_dim=32, ssm_state_size=16, n_groups=2)
    assert kinds(mamba) == {"full": 1, "state": 1}
    jamba = shape(attn_layer_offset=1, attn_layer_period=2, mamba_d_state=16, mamba_expand=2, mamba_d_conv=4)
    [state] = [group for group in jamba.layers if group.kind is Kind.STATE]
    assert state.state_bytes == 128 * 3 * 2 + 128 * 16 * 4
    grown = request_bytes(jamba, Serving(), 100_000) - request_bytes(jamba, Serving(), 50_000)
    assert grown == pytest.approx(50_000 * token_bytes(jamba, Serving()), rel=0.05)


def test_layers_that_use_the_keys_of_others_keep_none() -> None:
    assert kinds(shape(num_kv_shared_layers=1)) == {"full": 1}


def test_the_length_is_scaled_only_where_the_configuration_has_not_done_so() -> None:
    assert shape(rope_scaling={"type": "linear", "factor": 4.0}).longest == 8192
    assert shape(rope_scaling={"rope_type": "yarn", "factor": 4.0}).longest == 2048
    assert shape(rope_scaling={"rope_type": "longrope"}, original_max_position_embeddings=512).longest == 512


def test_flags_and_the_checkpoint_decide_the_bytes_of_the_cache() -> None:
    plain = token_bytes(shape(), Serving())
    assert plain == 2 * 2 * (16 + 16) * 2
    assert token_bytes(shape(), serving_of({"kv-cache-dtype": "fp8"}, 1, 0)) == plain // 2
    assert token_bytes(shape(), serving_of({"dtype": "float32"}, 1, 0)) == plain * 2
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    assert token_bytes(shape(quantization_config=scheme), Serving()) == plain // 2
    per_head = serving_of({"kv-cache-dtype": "int8_per_token_head"}, 1, 0)
    assert plain // 2 < token_bytes(shape(), per_head) < plain


def test_the_real_bytes_count_whatever_the_dtype_is() -> None:
    packed = [Tensor("model.layers.0.mlp.experts.qweight", "I32", (64, 64), 64 * 64 * 4)]
    assert sum_up(packed, shape(quantization_config={"quant_method": "awq", "group_size": 128}), 0).total == 64 * 64 * 4
    wide = [Tensor("model.embed_tokens.weight", "F32", (64, 64), 64 * 64 * 4)]
    assert sum_up(wide, shape(), 0).total == 64 * 64 * 2, "served in sixteen bits"


def test_an_output_layer_that_is_the_embedding_is_loaded_once() -> None:
    both = tensors({**TINY, "tie_word_embeddings": False})
    assert sum_up(both, shape(), 0).total - sum_up(both, shape(tie_word_embeddings=True), 0).total == 640 * 64 * 2


def test_what_is_not_cut_is_counted_on_every_gpu() -> None:
    found = sum_up(tensors(TINY), shape(), 0)
    assert found.whole == (2 * 2 + 1) * 64 * 2, "the norms"
    assert found.on_each(4, kv_heads=2) == -(-found.cut // 4) + found.keys_and_values // 2 + found.whole
    router = [Tensor("model.layers.0.mlp.gate.weight", "BF16", (8, 64), 1024)]
    assert sum_up(router, shape(), 0).whole == 1024


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"a": 1}',
        b'{"a": {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F16", "shape": "x", "data_offsets": [0, 4]}}',
        b"[" * 10_000,
    ],
)
def test_a_header_that_cannot_be_read_is_told(header: bytes) -> None:
    with pytest.raises(HeaderError):
        read_header(header)
    with pytest.raises(HeaderError):
        header_length(b"\xff" * 8)


def test_a_models_folder_is_read_through_its_headers(tmp_path: Path) -> None:
    write(tmp_path / "local" / "tiny", TINY)
    found = facts(tmp_path)
    assert found.shape == shape()
    assert (found.weights.is_exact, found.weights.total) == (True, sum(tensor.size for tensor in tensors(TINY)))
    assert found == facts(tmp_path)


def test_only_the_files_that_an_engine_loads_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "local" / "tiny", TINY)
    alone = facts(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(bytes(1 << 20))
    (folder / "consolidated.safetensors").write_bytes(bytes(1 << 20))
    assert facts(tmp_path).weights == alone.weights
    assert facts(tmp_path).revision != alone.revision
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    (folder / "second.safetensors").write_bytes(bytes(1 << 20))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "first.safetensors"}}))
    assert facts(tmp_path).weights == alone.weights
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "not-here.safetensors"}}))
    assert not facts(tmp_path).weights.is_exact, "the second file has no header"


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    models = ModelsFolder(tmp_path)
    folder = write(tmp_path / "local" / "tiny", TINY)
    spec = EndpointSpec(name="a", model="local/tiny")
    first = models.find(spec)
    assert models.find(spec) is first
    write(folder, {**TINY, "num_hidden_layers": 3})
    second = models.find(spec)
    assert first is not None
    assert second is not None
    assert second.weights.total > first.weights.total
    assert second.revision != first.revision

"""What an adapter's files say of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.types import AdapterFacts, AdapterSource
from gateway.errors import BadRequest
from tests.support.adapters import adapter_folder, write_tensors


def facts(models: Path, **fields: Any) -> AdapterFacts:
    adapter_folder(models / "local" / "red", **fields)
    found = ModelsFolder(models).find_adapter(AdapterSource(model="local/red"))
    assert found is not None
    return found


def test_rank_bytes_and_the_model_it_was_made_for_are_read(tmp_path: Path) -> None:
    found = facts(tmp_path, rank=8, hidden=256, layers=2)
    assert (found.path, found.rank, found.hidden_size, found.layers) == ("local/red", 8, 256, 2)
    assert found.size_bytes == 2 * 2 * 2 * 8 * 256 * 4, "two layers, two modules, A and B, in four bytes"
    assert (found.base_model, found.unsupported) == ("demo", "")


def test_the_highest_rank_of_any_module_counts(tmp_path: Path) -> None:
    assert facts(tmp_path, rank=8, rank_pattern={"q_proj": 32}).rank == 32


def test_other_files_are_another_revision(tmp_path: Path) -> None:
    assert facts(tmp_path, seed=1).revision != facts(tmp_path, seed=2, rank=16).revision


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"bias": "lora_only"}, "it has biases"),
        ({"modules_to_save": ["lm_head"]}, "it replaces whole modules (lm_head)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes"),
    ],
)
def test_what_vllm_does_not_load_is_known_before_it_is_asked(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    assert said in facts(tmp_path, **fields).unsupported


def test_plain_variants_are_taken(tmp_path: Path) -> None:
    plain = {"init_lora_weights": "gaussian", "modules_to_save": ["score"], "use_rslora": True, "lora_bias": False}
    assert facts(tmp_path, **plain).unsupported == ""


def test_layers_of_an_encoder_do_not_tell_the_text_models_width(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "local" / "red")
    name = "base_model.model.visual.blocks.layers.0.self_attn.q_proj.lora_A.weight"
    write_tensors(folder / "adapter_model.safetensors", {name: (8, 1280)}, 1)
    found = ModelsFolder(tmp_path).find_adapter(AdapterSource(model="local/red"))
    assert found is not None
    assert (found.hidden_size, found.layers) == (None, 0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        (json.dumps({"peft_type": "IA3"}), "of the kind 'IA3'"),
        (json.dumps({"peft_type": "LORA"}), "without a usable rank"),
        (json.dumps({"r": 8, "rank_pattern": {"x": "8"}}), "without a usable rank"),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, config: str, said: str) -> None:
    folder = adapter_folder(tmp_path / "local" / "red")
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(BadRequest, match=said):
        ModelsFolder(tmp_path).find_adapter(AdapterSource(model="local/red"))


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "local" / "red")
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadRequest, match="cannot be read"):
        ModelsFolder(tmp_path).find_adapter(AdapterSource(model="local/red"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadRequest, match="and no other form is taken"):
        ModelsFolder(tmp_path).find_adapter(AdapterSource(model="local/red"))


def test_a_hub_adapter_is_there_once_its_reference_is(tmp_path: Path) -> None:
    source, commit = AdapterSource(model="Org/red"), "0123456789abcdef"
    folder = tmp_path / "hub" / "Org" / "red"
    assert ModelsFolder(tmp_path).find_adapter(source) is None
    adapter_folder(folder / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    found = ModelsFolder(tmp_path).find_adapter(source)
    assert found is not None
    assert (found.path, found.revision) == (f"hub/Org/red/{commit}", commit)

import hashlib
import importlib.util
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_demo_model"
KINDS = ("llama", "embedding")
LLAMA_TENSORS = {
    "lm_head.weight": [260, 256],
    "model.embed_tokens.weight": [260, 256],
    "model.norm.weight": [256],
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(2)
        for name, shape in {
            "input_layernorm": [256],
            "mlp.down_proj": [256, 512],
            "mlp.gate_proj": [512, 256],
            "mlp.up_proj": [512, 256],
            "post_attention_layernorm": [256],
            "self_attn.k_proj": [128, 256],
            "self_attn.o_proj": [256, 256],
            "self_attn.q_proj": [256, 256],
            "self_attn.v_proj": [128, 256],
        }.items()
    },
}


def make(folder: Path, kind: str, *, expect: int = 0) -> str:
    """Run the script as a user would. Returns what it said."""
    command = [str(SCRIPT), "--kind", kind, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        make(folder / kind, kind)
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header without its metadata, and the elements."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    return header, content[8 + length :]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_file_is_gapless_and_each_tensor_as_long_as_its_shape(models: Path, kind: str) -> None:
    header, elements = read_weights(models / kind / "model.safetensors")
    position = 0
    for tensor in sorted(header.values(), key=lambda one: one["data_offsets"]):
        start, end = tensor["data_offsets"]
        assert tensor["dtype"] == "BF16"
        assert start == position
        assert end - start == 2 * math.prod(tensor["shape"])
        position = end
    assert position == len(elements)


@pytest.mark.parametrize("kind", KINDS)
def test_the_elements_start_on_an_eight_byte_border(models: Path, kind: str) -> None:
    content = (models / kind / "model.safetensors").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_the_chat_model_has_every_tensor_of_a_llama(models: Path) -> None:
    header, _ = read_weights(models / "llama" / "model.safetensors")
    assert {name: tensor["shape"] for name, tensor in header.items()} == LLAMA_TENSORS


def test_the_embedding_model_has_every_tensor_of_a_bert(models: Path) -> None:
    header, _ = read_weights(models / "embedding" / "model.safetensors")
    config = read_json(models / "embedding" / "config.json")
    assert header["embeddings.word_embeddings.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert len([name for name in header if name.startswith("encoder.layer.")]) == config["num_hidden_layers"] * 16
    assert len(header) == 5 + config["num_hidden_layers"] * 16 + 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_dense_and_as_large_as_the_config_says(models: Path, kind: str) -> None:
    tokenizer = read_json(models / kind / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(read_json(models / kind / "config.json")["vocab_size"]))
    for token in tokenizer["added_tokens"]:
        assert vocabulary[token["content"]] == token["id"]


def test_every_byte_has_a_token_of_its_own(models: Path) -> None:
    vocabulary = read_json(models / "llama" / "tokenizer.json")["model"]["vocab"]
    single = {token for token in vocabulary if len(token) == 1}
    assert len(single) == 256
    assert {"a", "Z", "~", "Ġ", "Ċ"} <= single


def test_the_special_tokens_of_the_configs_are_those_of_the_tokenizer(models: Path) -> None:
    vocabulary = read_json(models / "llama" / "tokenizer.json")["model"]["vocab"]
    named = read_json(models / "llama" / "tokenizer_config.json")
    config = read_json(models / "llama" / "config.json")
    for name in ("bos", "eos", "pad"):
        assert vocabulary[named[f"{name}_token"]] == config[f"{name}_token_id"]
    assert config["eos_token_id"] in read_json(models / "llama" / "generation_config.json")["eos_token_id"]
    assert "<|im_start|>" in named["chat_template"]


def test_text_survives_the_tokenizer(models: Path) -> None:
    if importlib.util.find_spec("tokenizers") is None:
        # the library is no dependency; the structure is what can be held without it
        assert read_json(models / "llama" / "tokenizer.json")["decoder"]["type"] == "ByteLevel"
        return
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(models / "llama" / "tokenizer.json"))
    text = "Grüße, 世界!\n  1 + 1 = 2\t"
    ids = tokenizer.encode(f"<|im_start|>{text}<|im_end|>").ids
    assert (ids[0], ids[-1], len(ids)) == (2, 3, len(text.encode()) + 2)
    assert tokenizer.decode(ids) == text


def test_the_embedding_model_describes_its_pooling(models: Path) -> None:
    modules = read_json(models / "embedding" / "modules.json")
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    pooling = read_json(models / "embedding" / "1_Pooling" / "config.json")
    assert pooling["word_embedding_dimension"] == read_json(models / "embedding" / "config.json")["hidden_size"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_writes_the_same_bytes(models: Path, tmp_path: Path, kind: str) -> None:
    make(tmp_path / "again", kind)
    assert digests(tmp_path / "again") == digests(models / kind)


def test_a_second_call_changes_nothing(models: Path) -> None:
    before = (models / "llama" / "model.safetensors").stat().st_mtime_ns
    assert "already" in make(models / "llama", "llama")
    assert (models / "llama" / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "something else" in make(tmp_path / "mine", "llama", expect=1)
    assert digests(tmp_path / "mine").keys() == {"notes.txt"}


def test_nothing_but_the_model_is_left_beside_it_and_everybody_can_read_it(tmp_path: Path) -> None:
    make(tmp_path / "local" / "demo", "embedding")
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["demo"]
    for path in [tmp_path / "local" / "demo", *(tmp_path / "local" / "demo").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_help_works() -> None:
    done = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "--kind" in done.stdout

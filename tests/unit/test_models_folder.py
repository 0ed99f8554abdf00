"""The models folder as the gateway reads it."""

from pathlib import Path

import pytest

from gateway.endpoints.models import CONFIG_LIMIT, ModelsFolder
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.errors import BadRequest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def spec(model: str, revision: str | None = None) -> EndpointSpec:
    return EndpointSpec(name="a", model=model, revision=revision)


def put(folder: Path, config: str | bytes | None = "{}", **weights: int) -> Path:
    """Make a model's folder with weight files of these sizes."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_bytes(config.encode() if isinstance(config, str) else config)
    for name, size in weights.items():
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.truncate(size)
    return folder


def publish(root: Path, revision: str = "main", commit: str = COMMIT) -> None:
    """Make a hub model's reference, as a download that is complete does."""
    reference = root / "hub" / "org" / "name" / "refs" / revision.replace("/", "--")
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(f"{commit}\n")


def find(root: Path, model: str, revision: str | None = None) -> ModelFacts | None:
    return ModelsFolder(root).find(spec(model, revision))


def refusal(root: Path, model: str = "local/tiny") -> str:
    with pytest.raises(BadRequest) as caught:
        find(root, model)
    assert caught.value.param == "model"
    assert str(root) not in caught.value.message
    return caught.value.message


def test_a_local_model_is_found_with_the_size_of_its_weights_rounded_up(tmp_path: Path) -> None:
    folder = put(tmp_path / "local" / "tiny", one=2**20, two=1)
    (folder / "tokenizer.json").write_bytes(bytes(5 * 2**20))
    found = find(tmp_path, "local/tiny")
    assert found is not None
    assert (found.path, found.weights_mib, found.weights.is_exact) == ("local/tiny", 2, False)


def test_a_missing_local_folder_is_refused_and_those_there_are_named(tmp_path: Path) -> None:
    assert "the folder local/ holds none yet" in refusal(tmp_path)
    put(tmp_path / "local" / "other")
    assert "there is local/other" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "no config.json"),
        ("", "cannot be read"),
        ("[]", "not an object"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (" " * (CONFIG_LIMIT + 1), "too large"),
    ],
    ids=["none", "empty", "list", "binary", "deep", "large"],
)
def test_a_folder_whose_config_is_no_config_is_no_model(tmp_path: Path, config: str | bytes | None, why: str) -> None:
    put(tmp_path / "local" / "tiny", config)
    assert why in refusal(tmp_path)


def test_a_weight_file_that_is_a_link_to_nowhere_is_told(tmp_path: Path) -> None:
    (put(tmp_path / "local" / "tiny") / "model.safetensors").symlink_to(tmp_path / "nowhere")
    assert "cannot be read (No such file or directory)" in refusal(tmp_path)


def test_a_config_that_is_a_folder_is_told(tmp_path: Path) -> None:
    (put(tmp_path / "local" / "tiny", None) / "config.json").mkdir()
    assert "cannot be read" in refusal(tmp_path)


def test_a_hub_model_is_there_once_its_reference_is(tmp_path: Path) -> None:
    put(tmp_path / "hub" / "org" / "name" / COMMIT, one=3 * 2**20)
    assert find(tmp_path, "org/name") is None
    publish(tmp_path)
    expected = find(tmp_path, "org/name")
    assert expected is not None
    assert (expected.path, expected.weights_mib, expected.revision) == (f"hub/org/name/{COMMIT}", 3, COMMIT)
    assert find(tmp_path, "org/name", "v1/beta") is None
    publish(tmp_path, "v1/beta")
    assert find(tmp_path, "org/name", "v1/beta") == expected


def test_a_commit_is_found_without_a_reference(tmp_path: Path) -> None:
    put(tmp_path / "hub" / "org" / "name" / COMMIT)
    found = find(tmp_path, "org/name", COMMIT)
    assert found is not None
    assert found.path == f"hub/org/name/{COMMIT}"
    assert find(tmp_path, "org/name", "f" * 40) is None


def test_a_reference_that_names_no_commit_or_none_that_is_here_counts_as_not_downloaded(tmp_path: Path) -> None:
    for commit in ("../../local", "", "main", "f" * 40):
        publish(tmp_path, commit=commit)
        assert find(tmp_path, "org/name") is None


def test_a_reference_that_is_no_text_is_told(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "hub" / "org" / "name" / "refs" / "main").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(tmp_path, "org/name")

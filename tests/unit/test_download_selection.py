import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_manager.jobs.disk import GIB, check_room, free_bytes
from worker_manager.jobs.failures import DiskFullError, DownloadError, ModelMissingError
from worker_manager.jobs.selection import HubFile, choose

SAFE = "model.safetensors"


def chosen(*paths: str) -> set[str]:
    """The names that the rule keeps of these."""
    return {file.path for file in choose(HubFile(path=path, size=len(path)) for path in paths)}


def test_safetensors_are_preferred_to_every_other_copy() -> None:
    copies = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "consolidated.00.pth", "tf_model.h5")
    assert chosen(SAFE, *copies, "onnx/model.onnx", "original/params.json") == {SAFE}


def test_bin_weights_are_taken_where_there_is_nothing_better() -> None:
    paths = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json")
    assert chosen(*paths, "training_args.bin", "optimizer.bin", "config.json") == {*paths, "config.json"}


def test_configs_tokenizers_and_templates_come_along() -> None:
    needed = (
        SAFE,
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "qwen.tiktoken",
        "chat_template.jinja",
        "1_Pooling/config.json",
    )
    assert chosen(*needed) == set(needed)


def test_code_is_never_fetched() -> None:
    assert chosen(SAFE, "modeling_x.py", "setup.sh", "lib.so", "notebook.ipynb", "x.pkl") == {SAFE}


def test_documents_pictures_and_hidden_files_stay_behind() -> None:
    assert chosen(SAFE, "README.md", "logo.png", ".gitattributes", ".cache/x.json") == {SAFE}


def test_mistrals_second_copy_stays_behind() -> None:
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert chosen(*shards, "consolidated.safetensors", "consolidated.safetensors.index.json") == shards


def test_mistrals_own_format_is_taken_where_it_is_the_only_one() -> None:
    assert chosen("consolidated.safetensors", "params.json") == {"consolidated.safetensors", "params.json"}


def test_a_later_module_with_bin_weights_only_keeps_them() -> None:
    modules = {"2_Dense/pytorch_model.bin", "3_Dense/model.safetensors"}
    assert chosen(SAFE, *modules, "3_Dense/pytorch_model.bin", "checkpoint-9/pytorch_model.bin") == {SAFE, *modules}


def test_small_files_come_first() -> None:
    files = [HubFile(path=SAFE, size=900), HubFile(path="config.json", size=3), HubFile(path="tokenizer.json", size=70)]
    assert [file.path for file in choose(files)] == ["config.json", "tokenizer.json", SAFE]


def test_a_repository_without_weights_is_refused_and_says_what_it_has() -> None:
    with pytest.raises(ModelMissingError, match=r"\.gguf"):
        chosen("config.json", "model.Q4_K_M.gguf")


@pytest.mark.parametrize(
    "path", ["../x.json", "a/../../x.json", "/etc/x.json", "a//b.json", "a\\..\\b.json", "a\n.json"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(DownloadError, match="unsafe"):
        chosen(SAFE, path)


@given(st.lists(st.text("ab./\\_-py09", max_size=30), max_size=8))
def test_no_list_of_names_gets_code_or_a_way_out_through(paths: list[str]) -> None:
    try:
        kept = chosen(SAFE, *paths)
    except DownloadError:
        return
    assert not any(path.endswith(".py") or path.startswith("/") or ".." in path.split("/") for path in kept)


def test_what_fits_beside_the_reserve_is_fetched() -> None:
    check_room(wanted=5 * GIB, free=10 * GIB, reserve=5 * GIB)


def test_one_byte_too_many_is_refused_with_what_is_missing() -> None:
    with pytest.raises(DiskFullError, match=r"5\.00 GiB.*reserve.*10\.00 GiB") as refused:
        check_room(wanted=5 * GIB, free=10 * GIB, reserve=5 * GIB + 1)
    assert "Free" in refused.value.hint


def test_a_model_that_is_there_needs_no_room() -> None:
    check_room(wanted=0, free=0, reserve=5 * GIB)


@given(st.integers(1, 1 << 50), st.integers(0, 1 << 50), st.integers(0, 1 << 40))
def test_the_reserve_is_never_promised(wanted: int, free: int, reserve: int) -> None:
    fits = True
    try:
        check_room(wanted=wanted, free=free, reserve=reserve)
    except DiskFullError:
        fits = False
    assert fits == (free - wanted >= reserve)


def test_free_space_is_read_from_the_nearest_folder_that_exists(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert free_bytes(tmp_path_factory.mktemp("models") / "not" / "yet") > 0

"""Copies of adapters for one worker's engine."""

from pathlib import Path

import msgspec
import pytest

from tests.support.adapters import adapter_folder
from worker_manager.adapter_copies import AdapterCopyError, folder_name, place
from worker_manager.contract import Adapter

RED = Adapter(name="org/red", path="local/red", revision="a1", rank=8)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    adapter_folder(tmp_path / "models" / "local" / "red")
    return tmp_path / "models"


def test_two_files_are_copied_and_nothing_else(models: Path, tmp_path: Path) -> None:
    (models / "local" / "red" / "code.py").write_text("raise SystemExit")
    place(models, RED, tmp_path / "copies")
    (copy,) = (tmp_path / "copies").iterdir()
    assert copy.name == folder_name(RED)
    assert {file.name for file in copy.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_copy_stays_as_it_is_when_the_original_changes(models: Path, tmp_path: Path) -> None:
    place(models, RED, tmp_path / "copies")
    copy = tmp_path / "copies" / folder_name(RED) / "adapter_model.safetensors"
    before = copy.read_bytes()
    adapter_folder(models / "local" / "red", seed=2)
    place(models, RED, tmp_path / "copies")
    assert copy.read_bytes() == before
    changed = msgspec.structs.replace(RED, revision="b2")
    place(models, changed, tmp_path / "copies")
    assert folder_name(changed) != folder_name(RED)


def test_names_that_read_alike_have_folders_of_their_own() -> None:
    names = ("a/b", "a-b", "a:b")
    assert len({folder_name(msgspec.structs.replace(RED, name=name)) for name in names}) == 3
    assert all("/" not in folder_name(msgspec.structs.replace(RED, name=name)) for name in names)


def test_what_leads_out_of_the_models_folder_or_is_not_there_is_not_copied(models: Path, tmp_path: Path) -> None:
    outside = adapter_folder(tmp_path / "outside")
    (models / "local" / "out").symlink_to(outside)
    linked = adapter_folder(models / "local" / "linked")
    (linked / "adapter_config.json").unlink()
    (linked / "adapter_config.json").symlink_to("/etc/hostname")
    bare = adapter_folder(models / "local" / "bare")
    (bare / "adapter_model.safetensors").unlink()
    words = {
        "local/out": "a link out of the models folder",
        "local/linked": "its adapter_config.json is a link",
        "local/bare": "it has no adapter_model.safetensors",
        "local/none": "does not exist below the models folder",
    }
    for path, said in words.items():
        with pytest.raises(AdapterCopyError, match=said):
            place(models, msgspec.structs.replace(RED, path=path), tmp_path / "copies")
    assert list((tmp_path / "copies").iterdir() if (tmp_path / "copies").exists() else ()) == []


def test_a_copy_that_was_broken_off_is_begun_anew(models: Path, tmp_path: Path) -> None:
    half = tmp_path / "copies" / f".{folder_name(RED)}.new"
    half.mkdir(parents=True)
    (half / "adapter_config.json").write_text("{")
    place(models, RED, tmp_path / "copies")
    assert [folder.name for folder in (tmp_path / "copies").iterdir()] == [folder_name(RED)]


def test_copies_leave_room_on_the_disk(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker_manager.adapter_copies.RESERVE_BYTES", 1 << 60)
    with pytest.raises(AdapterCopyError, match="do not fit on the disk"):
        place(models, RED, tmp_path / "copies")
    assert list((tmp_path / "copies").iterdir()) == []

"""How much an engine has written, and getting rid of it, however it has hidden it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import short_folder
from tests.support.users import without_rights
from worker_manager import disk_use
from worker_manager.disk_use import Writable, trouble
from worker_manager.jobs import sweep

MIB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "engine"
    made.mkdir()
    return made


def place(folder: Path, **change: str) -> Writable:
    return Writable(folder=folder, bytes_max=MIB, name="its socket folder", **change)


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def nest(folder: Path, depth: int) -> None:
    """Folders in each other, deeper than a path may be long."""
    start = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
    finally:
        os.chdir(start)


def test_what_is_written_counts_wherever_it_is(folder: Path) -> None:
    write(folder / "a", MIB // 2)
    assert trouble(place(folder)) == ""
    write(folder / "b" / "c" / "d", MIB)
    assert "more than 1 MiB" in trouble(place(folder))


def test_our_own_folder_in_it_links_and_holes_do_not_count(folder: Path, tmp_path: Path) -> None:
    write(folder / "adapters" / "a", 2 * MIB)
    write(tmp_path / "large", 2 * MIB)
    (folder / "link").symlink_to(tmp_path / "large")
    (folder / "folders").symlink_to(tmp_path)
    with (folder / "hole").open("wb") as stream:
        stream.truncate(100 * MIB)
    assert trouble(place(folder, but="adapters")) == ""
    assert trouble(place(folder)) != ""


def test_many_empty_files_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_use, "ENTRIES_MAX", 10)
    for number in range(11):
        (folder / str(number)).touch()
    assert trouble(place(folder)) != ""


def test_a_folder_that_is_not_there_is_no_trouble(folder: Path) -> None:
    assert trouble(place(folder / "none")) == ""


def test_a_locked_folder_is_trouble() -> None:
    with short_folder() as folder:
        folder.chmod(0o755)
        (folder / "locked").mkdir(mode=0)
        with without_rights():
            assert "closed" in trouble(place(folder))


def locked(folder: Path) -> None:
    write(folder / "a" / "b" / "c", 10)
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)


def deep(folder: Path) -> None:
    nest(folder, 3000)


def linked(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "kept")
    (folder / "loop").symlink_to(folder)


def many(folder: Path) -> None:
    for number in range(300):
        write(folder / "a" / str(number), 1)


@pytest.mark.parametrize("hide", [locked, deep, linked, many])
def test_whatever_is_in_a_folder_is_swept_and_nothing_beside_it(folder: Path, hide: Callable[[Path], None]) -> None:
    write(folder.parent / "kept" / "file", 10)
    hide(folder)
    if hide is deep:
        assert trouble(place(folder)) != ""
    assert sweep.empty(folder)
    assert list(folder.iterdir()) == []
    assert (folder.parent / "kept" / "file").is_file()
    assert sweep.empty(folder / "none")

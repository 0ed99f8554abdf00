"""Files that are replaced."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker_manager.files import replace_file


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 8 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, told)


def test_a_file_is_made_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content in (b"first", b"second and longer", b""):
        replace_file(file, content)
        assert file.read_bytes() == content
        assert list(tmp_path.iterdir()) == [file]


def test_what_does_not_fit_on_the_disk_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    replace_file(file, b"old")
    with full_disk(), pytest.raises(OSError, match="large"):
        replace_file(file, b"what is new and too long")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_left_half_written_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    (tmp_path / ".a.json.new").write_bytes(b"half of it, from a manager that was killed")
    replace_file(file, b"whole")
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"whole", [file])

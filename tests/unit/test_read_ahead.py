"""Weights come into the page cache, no more of them than there is room for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.page_cache import resident, write_cold
from tests.support.processes import REPOSITORY
from worker_manager.jobs.read_ahead import PIECE_BYTES, available_bytes, read, weight_bytes, weight_files

MIB = 1 << 20
PLENTY = 1 << 50


def names(folder: Path, *made: str) -> list[str]:
    for name in made:
        (folder / name).write_bytes(b"x")
    return [path.name for path in weight_files(folder)]


def test_what_an_engine_loads_is_read_and_nothing_else(tmp_path: Path) -> None:
    assert names(tmp_path, "config.json", "b.gguf", "a.bin") == ["a.bin", "b.gguf"]
    assert names(tmp_path, "consolidated.safetensors") == ["consolidated.safetensors"]
    assert names(tmp_path, "model-2.safetensors", "model-1.safetensors") == [
        "model-1.safetensors",
        "model-2.safetensors",
    ]


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    assert weight_files(tmp_path) == []
    assert read(tmp_path, 0, lambda: PLENTY) == (0, 0)


def test_weights_are_in_memory_afterwards(tmp_path: Path) -> None:
    for number in (1, 2):
        write_cold(tmp_path / f"model-{number}.safetensors", 12)
    assert resident(tmp_path / "model-2.safetensors") < 0.5
    assert read(tmp_path, 0, lambda: PLENTY) == (24 * MIB, 24 * MIB)
    for number in (1, 2):
        assert resident(tmp_path / f"model-{number}.safetensors") > 0.9


def test_no_more_is_read_than_there_is_room_for_beyond_the_reserve(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(6 * PIECE_BYTES))
    assert read(tmp_path, 10 * PIECE_BYTES, lambda: 12 * PIECE_BYTES)[0] == 2 * PIECE_BYTES
    assert read(tmp_path, 10 * PIECE_BYTES, lambda: 10 * PIECE_BYTES)[0] == 0


def test_it_stops_when_others_take_the_memory_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(6 * PIECE_BYTES))
    left = iter([PLENTY, PLENTY, 5])
    assert read(tmp_path, 6, lambda: next(left))[0] == 2 * PIECE_BYTES


def test_the_machine_tells_what_it_has_to_spare() -> None:
    assert available_bytes() > 0


def test_the_program_tells_what_it_has_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(MIB))
    words = [f"--folder={tmp_path}", "--reserve-mib=0"]
    command = [sys.executable, "-m", "worker_manager.jobs.read_ahead", *words]
    done = subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY, timeout=30)
    assert json.loads(done.stdout) == {"event": "done", "bytes_read": MIB, "bytes_total": MIB}


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_a_folder_that_is_not_there_has_no_weights(tmp_path: Path, what: str) -> None:
    (tmp_path / "a file").write_text("")
    assert weight_bytes(tmp_path / what) == 0

"""Real engines' last words, each read for its kind, its cause and what to do: tests/data/engine_logs, case by case."""

from pathlib import Path

import msgspec
import pytest

from worker_manager.contract import Failure, FailureKind
from worker_manager.engines.diagnosis import TAIL_LINES, diagnose, has_given_up
from worker_manager.engines.last_words import PERMANENT_KINDS

FOLDER = Path(__file__).resolve().parents[1] / "data" / "engine_logs"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))
LEAST_CASES = 15
SETTLED_ELSEWHERE = {FailureKind.LOAD_TIMEOUT}
"""Kinds that no log tells: the manager knows them by its clock."""
MOST_CHARACTERS = 700
HOSTLER_WORDS = (
    "engine_args",
    "max_model_len",
    "gpu_memory_gib",
    "HOSTLER_",
    "folder",
    "model",
    "image",
    "HF_TOKEN",
    "driver",
    "log",
    "dmesg",
    "/api/host",
)


class Note(msgspec.Struct, frozen=True):
    """The file beside a log: how it was made, and what it should be read as."""

    kind: FailureKind
    about: str
    cause: str
    """Words of the line that names the cause."""
    exit_code: int | None
    out_of_memory: bool
    was_ready: bool
    hint: str = ""
    """Words that the fix has to hold."""


def note_of(case: str) -> Note:
    return msgspec.json.decode((FOLDER / f"{case}.json").read_bytes(), type=Note)


def read(case: str) -> Failure:
    note, lines = note_of(case), (FOLDER / f"{case}.log").read_text().splitlines()
    return diagnose(
        exit_code=note.exit_code, out_of_memory=note.out_of_memory, lines=lines, was_ready=note.was_ready, now=5.0
    )


def test_there_are_logs_of_many_ways_to_die() -> None:
    assert len(CASES) >= LEAST_CASES
    assert sorted(path.stem for path in FOLDER.glob("*.log")) == CASES


@pytest.mark.parametrize("case", CASES)
def test_a_real_log_is_read_for_its_kind_its_cause_and_its_fix(case: str) -> None:
    note, failure = note_of(case), read(case)
    assert failure.message
    assert failure.hint
    assert failure.log_tail
    if note.kind in SETTLED_ELSEWHERE:
        assert failure.kind is FailureKind.UNKNOWN
        return
    assert failure.kind is note.kind, failure.message
    assert note.cause in failure.message
    assert len(failure.message) < MOST_CHARACTERS
    assert note.hint in failure.hint
    assert any(word in failure.hint for word in HOSTLER_WORDS), failure.hint
    assert len(failure.log_tail) <= TAIL_LINES
    assert any(note.cause in line for line in failure.log_tail) or not note.cause


@pytest.mark.parametrize("case", CASES)
def test_a_log_of_which_only_the_end_is_left_is_never_read_as_another_kind(case: str) -> None:
    note, lines = note_of(case), (FOLDER / f"{case}.log").read_text().splitlines()
    failure = diagnose(exit_code=1, out_of_memory=False, lines=lines[-30:], was_ready=note.was_ready, now=5.0)
    assert failure.kind in {note.kind, FailureKind.UNKNOWN}


def test_an_engine_that_gave_up_and_hangs_is_told_from_one_that_loads() -> None:
    gave_up = (FOLDER / "cache-full.log").read_text().splitlines()
    loads = (FOLDER / "load-hangs.log").read_text().splitlines()
    assert note_of("cache-full").exit_code is None
    assert (has_given_up(gave_up), has_given_up(loads)) == (True, False)


def test_the_back_off_tries_again_only_what_another_try_may_mend() -> None:
    kinds = {note_of(case).kind for case in CASES}
    assert kinds & PERMANENT_KINDS
    assert not PERMANENT_KINDS & {
        FailureKind.KILLED,
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
        FailureKind.OUT_OF_MEMORY_AT_RUN,
        FailureKind.DRIVER_MISMATCH,
        FailureKind.DISK_FULL,
        FailureKind.LAUNCH_FAILED,
        FailureKind.UNKNOWN,
    }

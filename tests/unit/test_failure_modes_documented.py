"""docs/failure-modes.md says what the code says: each kind of failure, which are final, and each cause with its fix."""

import re
from pathlib import Path

from worker_manager.contract import FailureKind, WorkerState
from worker_manager.engines.last_words import PERMANENT_KINDS, RULES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "failure-modes.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return TEXT.split(f"{title}\n", 1)[1].split("\n#", 1)[0]


def kinds_in(text: str) -> list[tuple[str, bool]]:
    """Each row's kind, and whether it bears the mark of those that are not tried again."""
    return [(kind, bool(mark)) for kind, mark in re.findall(r"^\| `(\w+)`( †)?[ ,|]", text, re.MULTILINE)]


def test_every_kind_of_failure_is_explained() -> None:
    assert {kind for kind, _ in kinds_in(section("## An engine does not start, or dies"))} == set(FailureKind)


def test_what_is_not_tried_again_is_marked() -> None:
    marked = {kind for kind, final in kinds_in(section("## An engine does not start, or dies")) if final}
    assert marked == set(PERMANENT_KINDS)


def test_how_long_each_state_may_last_is_told() -> None:
    rows = [line.split("|")[1] for line in section("### How long each state may last").splitlines() if "`" in line]
    assert {state for row in rows for state in re.findall(r"`(\w+)`", row)} >= set(WorkerState)


def test_every_cause_stands_there_with_its_message_and_its_fix() -> None:
    rows = [line for line in section("### What its log is read for").splitlines() if line.startswith("| `")]
    assert rows[1:] == [f"| `{rule.kind}` | {rule.message} | {rule.hint} |" for rule in RULES]

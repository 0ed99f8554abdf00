"""A log of decisions put to the planner again."""

from pathlib import Path

import msgspec
import pytest

from gateway.decisions import Entry
from gateway.replay import main
from gateway.scheduling.planner import plan
from gateway.scheduling.types import Decision, Plan, Situation, Verb
from tests.support.planning import endpoint, situation, waiting, worker
from worker_manager.contract import Residency

BUSY = situation([endpoint("a", **waiting())], one=20_000)
HOT = situation([endpoint("a", in_flight=1)], [worker("a", 1, "one", in_flight=1)], one=20_000)


def written(folder: Path, *entries: tuple[Situation, Plan]) -> str:
    path = folder / "decisions.jsonl"
    lines = [msgspec.json.encode(Entry(at=before.now, situation=before, plan=decided)) for before, decided in entries]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def replay(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out + err


def test_the_same_planner_decides_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = replay(capsys, written(tmp_path, (BUSY, plan(BUSY)), (HOT, plan(HOT))))
    assert (status, text) == (0, "2 plans, 0 of them are other ones now\n")


def test_where_it_decides_otherwise_each_worker_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Plan(desired=(), draining=frozenset(), decisions=(), wake_at=None)
    asleep = msgspec.structs.replace(plan(HOT), residencies={"a-1": Residency.ASLEEP_1})
    draining = msgspec.structs.replace(plan(HOT), draining=frozenset({"a-1"}))
    status, text = replay(capsys, written(tmp_path, (BUSY, nothing), (HOT, asleep), (HOT, draining)))
    assert status == 1
    (made,) = plan(BUSY).desired
    assert f"+ {made.id}: is desired now (1 waiting" in text
    assert "~ a-1: asleep_1 then, hot now" in text
    assert "~ a-1: does not drain now" in text
    assert text.endswith("3 plans, 3 of them are other ones now\n")


def test_on_request_it_tells_what_was_decided_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Decision(verb=Verb.WAIT, endpoint="a", worker=None, reason="for a good reason")
    decided = msgspec.structs.replace(plan(HOT), decisions=(told,))
    status, text = replay(capsys, "--show", written(tmp_path, (HOT, decided)))
    assert status == 0, "an explanation in other words is no other decision"
    assert "wait a: for a good reason" in text


def test_a_line_that_was_not_finished_ends_the_log_and_one_that_is_wrong_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(written(tmp_path, (HOT, plan(HOT))))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert replay(capsys, str(path))[1].startswith("1 plans")
    path.write_bytes(whole + b"{}\n")
    status, text = replay(capsys, str(path))
    assert status == 2
    assert "line 2" in text
    assert replay(capsys, str(tmp_path / "nowhere"))[0] == 2

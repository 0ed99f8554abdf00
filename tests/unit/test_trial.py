"""The trial's own judgement: it is worth what it would notice."""

import dataclasses
import json
from typing import Any

import pytest

from tests.trial.answers import CUT_SHORT, REFUSED, RIGHT, WRONG, Reply, expected, judge
from tests.trial.asking import Asked
from tests.trial.cast import BRIEF, FULL, MODELS
from tests.trial.faults import Injection
from tests.trial.promises import breaks_without_a_fault, starved, unexplained, unseen
from tests.trial.starvation import Spell, Spells, Turn, covered
from tests.trial.traffic import CHAT, PLAIN, Request, traffic
from tests.trial.witness import Death

SEED = 3
WHOLE = Request(
    number=1,
    at=0.0,
    model="cedar",
    route=PLAIN,
    stream=False,
    tokens=4,
    prompt="a question",
    batch=False,
    patience=None,
    leaves_after=None,
)
STREAM = dataclasses.replace(WHOLE, route=CHAT, stream=True)
ERROR = {"message": "why", "type": "api_error", "param": None, "code": "engine_broke"}


def reply(body: object, status: int = 200, **headers: str) -> Reply:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status=status, headers={"x-request-id": "1", **headers}, body=text)


def answer(text: str, reason: str = "length") -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": reason}]}


def events(*chunks: object) -> bytes:
    return b": loading\n\n" + b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


def refusal(**change: Any) -> dict[str, Any]:
    kind = {"type": "service_unavailable_error", "code": "no_worker"}
    return {"error": {**ERROR, **kind, **change}}


def asked(code: str, outcome: str = REFUSED, began: float = 100.0, ended: float = 101.0) -> Asked:
    judgement = dataclasses.replace(judge(WHOLE, reply(refusal(), 503, **{"retry-after": "1"}), SEED), code=code)
    return Asked(
        request=WHOLE,
        judgement=dataclasses.replace(judgement, outcome=outcome),
        status=502,
        began=began,
        ended=ended,
        wait=None,
        worker="cedar-1-1",
    )


def test_the_right_words_are_right_and_all_others_are_not() -> None:
    right = expected(WHOLE, SEED)
    assert judge(WHOLE, reply(answer(right)), SEED).outcome == RIGHT
    assert judge(WHOLE, reply(answer("")), SEED).outcome == WRONG
    assert judge(WHOLE, reply(answer(right, "abort")), SEED).outcome == WRONG
    assert judge(WHOLE, reply(answer(expected(WHOLE, SEED + 1))), SEED).outcome == WRONG
    assert judge(WHOLE, reply(b"no JSON"), SEED).outcome == WRONG
    assert judge(WHOLE, Reply(headers={}, trouble="reset"), SEED).outcome == WRONG


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (503, refusal(), {}),
        (500, refusal(code="internal_error", type="api_error"), {}),
        (502, refusal(), {"retry-after": "1"}),
        (503, refusal(type="api_error"), {"retry-after": "1"}),
        (503, refusal(message=" "), {"retry-after": "1"}),
        (503, refusal(traceback="…"), {"retry-after": "1"}),
        (503, {"detail": "…"}, {"retry-after": "1"}),
    ],
)
def test_an_error_that_is_not_as_documented_is_wrong(status: int, body: object, headers: dict[str, str]) -> None:
    assert judge(WHOLE, reply(refusal(), 503, **{"retry-after": "1"}), SEED).outcome == REFUSED
    assert judge(WHOLE, reply(body, status, **headers), SEED).outcome == WRONG


def test_a_stream_is_whole_or_ends_with_an_error_event() -> None:
    right, done = expected(STREAM, SEED), b"data: [DONE]\n\n"
    first = right.split(" ")[0]
    assert judge(STREAM, reply(events(piece(right), piece("", "length")) + done), SEED).outcome == RIGHT
    assert judge(STREAM, reply(events(piece(right), piece("", "length"))), SEED).outcome == WRONG
    assert judge(STREAM, reply(events(piece(first), piece("", "length")) + done), SEED).outcome == WRONG
    assert judge(STREAM, reply(events(piece(first), {"error": ERROR}) + done), SEED).outcome == CUT_SHORT
    assert judge(STREAM, reply(events(piece("what"), {"error": ERROR}) + done), SEED).outcome == WRONG
    assert judge(STREAM, reply(events({"error": ERROR}) + done), SEED).outcome == REFUSED
    assert judge(STREAM, reply(events({"error": {"message": "?"}}) + done), SEED).outcome == WRONG


def test_traffic_is_a_function_of_its_seed_and_asks_for_every_model() -> None:
    once = traffic(1, 600.0, FULL, MODELS)
    assert once == traffic(1, 600.0, FULL, MODELS)
    assert once != traffic(2, 600.0, FULL, MODELS)
    assert [request.at for request in once] == sorted(request.at for request in once)
    assert {request.model for request in once} == {model.name for model in MODELS}
    assert all(0 <= request.at <= 600 for request in once)
    assert {request.model for request in traffic(1, 18.0, BRIEF, MODELS)} > {"atlas"}


def test_a_break_counts_as_explained_only_by_a_fault_of_that_endpoint_at_that_time() -> None:
    fault = Injection(kind="killed", endpoint="cedar", at=100.5, over_at=102.0)
    elsewhere = Injection(kind="killed", endpoint="birch", at=100.5, over_at=102.0)
    assert breaks_without_a_fault([asked("engine_broke")], [fault]) == []
    assert breaks_without_a_fault([asked("engine_broke")], [elsewhere])
    assert breaks_without_a_fault([asked("engine_broke", ended=90.0, began=89.0)], [fault])
    assert breaks_without_a_fault([asked("engine_broke", CUT_SHORT, began=110.0, ended=111.0)], [fault])
    assert breaks_without_a_fault([asked("no_worker")], []) == []


def test_a_failure_that_nobody_injected_and_a_fault_that_nobody_was_told_of_are_found() -> None:
    death = Death(worker="cedar-1-1", endpoint="cedar", kind="killed", message="…", at=101.0)
    fault = Injection(kind="killed", endpoint="cedar", at=100.5, over_at=102.0, expected=frozenset({"killed"}))
    assert unexplained([death], [fault]) == []
    assert unexplained([dataclasses.replace(death, kind="out_of_memory_at_load")], [fault])
    assert unseen([fault])
    assert unseen([dataclasses.replace(fault, found_at=101.0, found_as="hung")])
    assert unseen([dataclasses.replace(fault, found_at=101.0, found_as="killed")]) == []


def test_a_spell_counts_without_the_time_in_which_a_fault_was_at_work() -> None:
    assert covered((10.0, 20.0), [(5.0, 12.0), (11.0, 14.0), (18.0, 30.0)]) == 6.0
    spells = Spells()
    spells.look(10.0, {"a": True, "b": False})
    spells.look(20.0, {"a": True, "b": True})
    spells.look(30.0, {"a": False, "b": True})
    assert [(one.endpoint, one.seconds, one.ahead) for one in spells.all(40.0)] == [("a", 20.0, 0), ("b", 20.0, 1)]
    turn = Turn(load=5.0, answer=2.0, leave=8.0)
    long = Spell(endpoint="a", since=0.0, until=turn.bound(0) + 10, ahead=0)
    assert starved([long], [], turn, slack=2.0)
    assert starved([dataclasses.replace(long, ahead=1)], [], turn, slack=2.0) == []
    fault = Injection(kind="hung", endpoint="b", at=50.0, over_at=60.0)
    assert starved([long], [fault], turn, slack=2.0) == []

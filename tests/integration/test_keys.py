"""Keys through a real gateway: changed, rotated and given a priority while requests go on."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.stack import Stack, bearer, chat, running_stack

CHAT = "/v1/chat/completions"
ANSWER = 5


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.endpoint("first", Simulation(answer_tokens=ANSWER))
        yield started


def new_key(stack: Stack, **fields: Any) -> tuple[str, str]:
    """A fresh key: its id and itself."""
    made = stack.client.post("/api/keys", json={"name": "of a test", **fields})
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["key"]


def ask(stack: Stack, key: str, **fields: Any) -> httpx.Response:
    """One chat completion with this key."""
    return stack.client.post(CHAT, json=chat("first", **fields), headers=bearer(key))


def test_a_changed_key_is_felt_by_the_next_request(stack: Stack) -> None:
    key_id, key = new_key(stack)
    assert ask(stack, key).status_code == 200
    changed = stack.client.patch(f"/api/keys/{key_id}", json={"endpoints": ["another"]})
    assert (changed.status_code, changed.json()["endpoints"], changed.json()["key"]) == (200, ["another"], None)
    assert ask(stack, key).status_code == 404
    assert stack.client.get("/v1/models", headers=bearer(key)).json()["data"] == []
    refused = stack.client.patch(f"/api/keys/{key_id}", json={"scopes": []})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "scopes")
    assert stack.client.get(f"/api/keys/{key_id}").json() == changed.json()


def test_a_rotated_key_serves_beside_its_successor_and_counts_as_the_same(stack: Stack) -> None:
    key_id, old = new_key(stack)
    rotated = stack.client.post(f"/api/keys/{key_id}/rotate", json={"overlap_seconds": 600}).json()
    assert rotated["id"] == key_id
    assert ask(stack, old).status_code == ask(stack, rotated["key"]).status_code == 200
    rows = stack.client.get("/api/usage").json()["rows"]
    assert [row["requests"] for row in rows if row["name"] == key_id] == [2]
    final = stack.client.post(f"/api/keys/{key_id}/rotate", json={"overlap_seconds": 0}).json()
    assert [ask(stack, key).status_code for key in (old, rotated["key"], final["key"])] == [401, 401, 200]


def test_a_rotation_without_a_body_lets_the_old_key_live_for_a_day(stack: Stack) -> None:
    key_id, _ = new_key(stack)
    rotated = stack.client.post(f"/api/keys/{key_id}/rotate").json()
    assert rotated["previous_until"] - rotated["created_at"] == pytest.approx(86_400, abs=60)
    assert stack.client.post("/api/keys/nobody/rotate").status_code == 404


def test_failed_sign_ins_are_counted_by_what_was_wrong(stack: Stack) -> None:
    _, key = new_key(stack)
    name = 'hostler_sign_ins_failed_total{reason="malformed"}'
    before = stack.metrics().get(name, 0)
    assert ask(stack, key[:-1]).status_code == 401
    assert stack.metrics()[name] == before + 1

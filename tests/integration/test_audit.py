"""Every change over the API is in the audit trail, with who made it and by which request; failed sign-ins too."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.audit.verify import verify
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

LIMIT = 5
SETTINGS = {"HOSTLER_SIGN_INS_PER_MINUTE": str(LIMIT), "HOSTLER_TRUSTED_PROXIES": "127.0.0.0/8", "HOSTLER_OFFLINE": "1"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(SETTINGS) as started:
        started.endpoint("first")
        yield started


def page(stack: Stack, **query: Any) -> list[dict[str, Any]]:
    answer = stack.client.get("/api/audit", params=query)
    assert answer.status_code == 200, answer.text
    records: list[dict[str, Any]] = answer.json()["records"]
    return records


def newest(stack: Stack, answer: httpx.Response) -> dict[str, Any]:
    """The one record that a request left."""
    assert answer.is_success, answer.text
    (record,) = page(stack, request_id=answer.headers["x-request-id"])
    assert record["address"] == "127.0.0.1"
    assert time.time() - 60 < record["at"] < time.time() + 1
    return record


def test_each_change_of_an_endpoint_is_recorded_with_what_was_and_what_is(stack: Stack) -> None:
    client = stack.client
    spec = {"name": "audited", "model": "local/first", "max_workers": 2}
    made = newest(stack, client.post("/api/endpoints", json=spec))
    assert (made["action"], made["target"], made["who"]) == ("endpoint.create", "audited", "admin")
    assert made["from"] is None
    assert (made["to"]["model"], made["to"]["max_workers"]) == ("local/first", 2)
    changed = newest(stack, client.patch("/api/endpoints/audited", json={"max_workers": 3, "priority": 0}))
    assert (changed["action"], changed["from"], changed["to"]) == (
        "endpoint.change",
        {"max_workers": 2},
        {"max_workers": 3},
    )
    for order in ("start", "stop"):
        ordered = newest(stack, client.post(f"/api/endpoints/audited/{order}"))
        assert (ordered["action"], ordered["target"]) == (f"endpoint.{order}", "audited")
    gone = newest(stack, client.delete("/api/endpoints/audited"))
    assert (gone["action"], gone["from"]["max_workers"], gone["to"]) == ("endpoint.delete", 3, None)


def test_keys_and_what_is_done_with_them_are_recorded_without_the_key(stack: Stack) -> None:
    made = stack.client.post("/api/keys", json={"name": "of a person", "scopes": ["endpoints"]})
    record = newest(stack, made)
    key_id, key = made.json()["id"], made.json()["key"]
    assert (record["action"], record["target"], record["to"]["name"]) == ("key.create", key_id, "of a person")
    with httpx.Client(base_url=stack.address, headers=bearer(key), timeout=30) as person:
        done = newest(stack, person.post("/api/endpoints/first/start", headers={"x-request-id": "mine"}))
        assert (done["who"], done["subject"], done["request_id"]) == (key_id, "of a person", "mine")
        assert person.get("/api/audit").status_code == 403
    changed = newest(stack, stack.client.patch(f"/api/keys/{key_id}", json={"name": "of another"}))
    assert (changed["action"], changed["from"], changed["to"]) == (
        "key.change",
        {"name": "of a person"},
        {"name": "of another"},
    )
    rotated = stack.client.post(f"/api/keys/{key_id}/rotate")
    assert (newest(stack, rotated)["action"], newest(stack, rotated)["target"]) == ("key.rotate", key_id)
    gone = newest(stack, stack.client.delete(f"/api/keys/{key_id}"))
    assert (gone["action"], gone["target"], gone["from"]["scopes"]) == ("key.revoke", key_id, ["endpoints"])
    everything = stack.client.get("/api/audit", params={"limit": 1000}).text
    assert key not in everything
    assert rotated.json()["key"] not in everything


def test_what_changes_nothing_is_not_recorded(stack: Stack) -> None:
    before = page(stack, limit=1)[0]["seq"]
    client = stack.client
    assert client.post("/v1/chat/completions", json=chat("first")).status_code == 200
    assert client.get("/api/keys").status_code == 200
    assert client.post("/api/endpoints", json={"name": "x", "model": "local/none"}).status_code == 400
    assert client.patch("/api/endpoints/first", json={"name": "y"}).status_code == 400
    assert client.delete("/api/keys/nobody").status_code == 404
    assert page(stack, limit=1)[0]["seq"] == before


def test_the_start_is_recorded_and_its_settings_without_the_key(stack: Stack) -> None:
    first = page(stack, action="settings")[-1]
    assert first["to"]["sign_ins_per_minute"] == str(LIMIT)
    assert first["who"] == "gateway"
    assert "admin_key" not in first["to"]
    assert stack.gateway is not None
    starts, changes = len(page(stack, action="gateway.start")), len(page(stack, action="settings"))
    for days in ("7", "7"):
        stack.gateway.stop()
        stack.env["HOSTLER_USAGE_DAYS"] = days
        stack.start_gateway()
        wait_until(stack.is_ready, "the gateway is ready again")
    assert len(page(stack, action="gateway.start")) == starts + 2
    latest, *before = page(stack, action="settings")
    assert (latest["from"], latest["to"]) == ({"usage_days": "90"}, {"usage_days": "7"})
    assert len(before) == changes


def test_downloads_are_recorded_before_they_are_asked_for_and_when_they_are_refused(stack: Stack) -> None:
    answer = stack.client.post("/api/downloads", json={"model": "org/model"})
    assert answer.status_code == 409
    records = page(stack, request_id=answer.headers["x-request-id"])
    assert [record["action"] for record in records] == ["download.refused", "download.start"]
    assert "HOSTLER_OFFLINE" in records[0]["to"]["message"]


def test_the_trail_is_read_in_pages_and_the_file_verifies_while_it_is_written(stack: Stack) -> None:
    for _ in range(5):
        stack.client.post("/api/endpoints/first/start")
    seen: list[int] = []
    before: int | None = None
    while True:
        answer = stack.client.get("/api/audit", params={"limit": 3} | ({"before": before} if before else {})).json()
        seen += [record["seq"] for record in answer["records"]]
        before = answer["next"]
        if before is None:
            break
    assert seen == list(range(len(seen), 0, -1))
    verdict = verify(stack.folder / "data" / "hostler.db")
    assert (verdict.records, verdict.problem) == (len(seen), "")
    assert page(stack, limit=1)[0]["hash"] == verdict.head.hex()
    logged = [line["hash"] for line in stack.log_lines() if line["event"] == "audit"]
    assert logged[-1] == verdict.head.hex()


@pytest.mark.parametrize("query", [{"limit": "0"}, {"before": "x"}, {"from": "soon"}, {"nothing": "1"}])
def test_a_question_that_makes_no_sense_is_refused(stack: Stack, query: dict[str, str]) -> None:
    answer = stack.client.get("/api/audit", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/keys", "/v1/models"])
def test_failed_sign_ins_are_limited_by_address_and_recorded_in_sums(stack: Stack, path: str) -> None:
    address = f"203.0.113.{len(path)}"
    there = {"x-forwarded-for": address}
    method = "POST" if "chat" in path else "GET"
    bad = {**there, **bearer("a-guess-of-somebody")}
    with httpx.Client(base_url=stack.address, timeout=30) as client:
        answers = [client.request(method, path, headers=bad) for _ in range(LIMIT + 2)]
        assert [answer.status_code for answer in answers] == [401] * LIMIT + [429] * 2
        assert int(answers[-1].headers["retry-after"]) > 0
        assert address in answers[-1].json()["error"]["message"]
        # the admin key of the tests was made up by a person: from there it is not even tried
        assert client.get("/api/keys", headers={**there, **bearer(ADMIN_KEY)}).status_code == 429
        assert client.get("/api/keys", headers=bearer(ADMIN_KEY)).status_code == 200
        key = stack.client.post("/api/keys", json={"name": "theirs"}).json()["key"]
        assert client.get("/v1/models", headers={**there, **bearer(key)}).status_code == 200

    def recorded() -> bool:
        found = [one for one in page(stack, action="sign_in.failed") if one["address"] == address]
        return sum(int(one["to"]["count"]) for one in found) == LIMIT + 2

    wait_until(recorded, "the failures are recorded")
    assert "a-guess-of-somebody" not in stack.client.get("/api/audit").text

"""Keys through a real gateway: changed, rotated, limited, and with a budget that outlives the gateway."""

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from gateway.types import Priority
from tests.engine_simulator.configuration import Simulation
from tests.support.issuer import AUDIENCE, Issuer
from tests.support.raw_http import RawConnection
from tests.support.stack import Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
ANSWER = 5


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(scope="module")
def stack(issuer: Issuer) -> Iterator[Stack]:
    settings = {
        "HOSTLER_OIDC_ISSUER": issuer.url,
        "HOSTLER_OIDC_AUDIENCE": AUDIENCE,
        "HOSTLER_OIDC_CLAIM": "realm_access.roles",
        "HOSTLER_OIDC_ROLES": "admins=admin, *=inference",
    }
    with running_stack(settings) as started:
        started.endpoint("first", Simulation(answer_tokens=ANSWER))
        started.endpoint("slow", Simulation(tokens_per_second=100, answer_tokens=100_000))
        yield started


def new_key(stack: Stack, **fields: Any) -> tuple[str, str]:
    """A fresh key: its id and itself."""
    made = stack.client.post("/api/keys", json={"name": "of a test", **fields})
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["key"]


def ask(stack: Stack, key: str, model: str = "first", **fields: Any) -> httpx.Response:
    """One chat completion with this key."""
    return stack.client.post(CHAT, json=chat(model, **fields), headers=bearer(key))


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


def test_a_connection_that_repeats_its_head_is_asked_for_its_key_each_time(stack: Stack) -> None:
    key_id, key = new_key(stack)
    name = 'hostler_sign_ins_failed_total{reason="unknown"}'
    before = stack.metrics().get(name, 0)
    ids, statuses = set(), []
    with RawConnection(stack.port) as connection:
        for step in range(7):
            if step == 4:
                assert stack.client.delete(f"/api/keys/{key_id}").status_code == 204
            connection.post(CHAT, chat("first", "x" * step), key)
            answer = connection.answer()
            connection.received = b""
            ids.add(answer.headers["x-request-id"])
            statuses.append(answer.status)
    assert statuses == [200] * 4 + [401] * 3
    assert len(ids) == 7
    assert stack.metrics()[name] == before + 3


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


def test_a_key_for_batch_work_stands_behind_whatever_its_requests_say(stack: Stack) -> None:
    key_id, key = new_key(stack, priority="batch")
    headers = bearer(key) | {"x-hostler-priority": "interactive"}
    stack.client.post(CHAT, json=chat("first"), headers=headers).raise_for_status()
    stack.client.get("/api/usage").raise_for_status()  # writes what is recorded
    with contextlib.closing(sqlite3.connect(stack.folder / "data" / "hostler.db")) as database:
        rows = database.execute("SELECT priority FROM usage_requests WHERE key_id = ?", (key_id,)).fetchall()
    assert rows == [(int(Priority.BATCH),)]


def test_failed_sign_ins_are_counted_by_what_was_wrong(stack: Stack) -> None:
    _, key = new_key(stack)
    name = 'hostler_sign_ins_failed_total{reason="malformed"}'
    before = stack.metrics().get(name, 0)
    assert ask(stack, key[:-1]).status_code == 401
    assert stack.metrics()[name] == before + 1


# limits


def asked(stack: Stack, key: str, **fields: Any) -> dict[str, Any]:
    """One chat completion with this key through the official client: what it was told of limits, and the usage."""
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=key, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="first", messages=[{"role": "user", "content": "hello"}], **fields
        )
        usage = raw.parse().usage
    assert usage is not None
    told = {name.removeprefix("x-ratelimit-"): value for name, value in raw.headers.items() if "ratelimit" in name}
    return {**told, "used": usage.total_tokens}


def test_requests_and_tokens_a_minute_are_told_settled_and_refused(stack: Stack) -> None:
    _, key = new_key(stack, limits={"requests_per_minute": 3, "tokens_per_minute": 1_000})
    first = asked(stack, key, max_tokens=500)
    assert (first["limit-requests"], first["remaining-requests"], first["limit-tokens"]) == ("3", "2", "1000")
    assert 450 < int(first["remaining-tokens"]) < 500
    second = asked(stack, key, max_tokens=500)
    # what the first one reserved and did not take is free again
    assert int(second["remaining-tokens"]) == int(first["remaining-tokens"]) - first["used"]
    asked(stack, key, max_tokens=100)
    with pytest.raises(openai.RateLimitError, match="may take 3 requests a minute") as caught:
        asked(stack, key)
    headers = caught.value.response.headers
    assert 0 < int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError, match="ask for less") as large:
        asked(stack, new_key(stack, limits={"tokens_per_minute": 100})[1], max_tokens=101)
    assert large.value.response.headers["x-should-retry"] == "false"


def test_a_key_without_limits_is_told_of_none(stack: Stack) -> None:
    answer = ask(stack, new_key(stack)[1])
    assert [name for name in answer.headers if "ratelimit" in name] == []


def test_a_full_key_refuses_at_once_and_lets_those_wait_who_say_how_long(stack: Stack) -> None:
    _, key = new_key(stack, limits={"concurrency": 1})
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=stack.address, headers=bearer(key), timeout=30) as user:
        with user.stream("POST", CHAT, json=chat("slow", stream=True)) as running:
            lines = running.iter_lines()
            next(lines)
            refused = ask(stack, key)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            in_vain = stack.client.post(CHAT, json=chat("first"), headers=bearer(key) | {"x-hostler-timeout": "0.1"})
            assert in_vain.status_code == 429
            headers = bearer(key) | {"x-hostler-timeout": "30"}
            waiting = pool.submit(stack.client.post, CHAT, json=chat("first"), headers=headers)
            assert not waiting.done()
        answer = waiting.result(30)
    assert answer.status_code == 200
    assert ask(stack, key).status_code == 200


def test_an_endpoint_has_limits_of_its_own_that_no_restart_is_needed_for(stack: Stack) -> None:
    worker = ask(stack, stack.key).headers["x-hostler-worker"]
    stack.client.patch("/api/endpoints/first", json={"limits": {"requests_per_minute": 1}}).raise_for_status()
    _, key = new_key(stack)
    statuses = [ask(stack, one).status_code for one in (key, new_key(stack)[1], stack.key)]
    stack.client.patch("/api/endpoints/first", json={"limits": None}).raise_for_status()
    assert statuses == [200, 429, 429]
    assert ask(stack, key).headers["x-hostler-worker"] == worker


# budgets


def spent(stack: Stack, key_id: str) -> dict[str, Any]:
    """What a key has spent."""
    found: dict[str, Any] = stack.client.get(f"/api/keys/{key_id}").json()["spent"]
    return found


def test_a_budget_is_spent_as_the_engine_counts_and_outlives_the_gateway(stack: Stack) -> None:
    key_id, key = new_key(stack, budget={"tokens": 600, "period": "day"})
    used = sum(asked(stack, key, max_tokens=500)["used"] for _ in range(2))
    with ThreadPoolExecutor(4) as pool:  # each reserves some 510 of the 600: of four at once one is let in at a time
        statuses = list(pool.map(lambda _: ask(stack, key, max_tokens=500).status_code, range(4)))
    assert set(statuses) <= {200, 429}
    used += statuses.count(200) * (used // 2)
    wait_until(lambda: spent(stack, key_id)["reserved"] == 0, "all have ended")
    assert spent(stack, key_id)["tokens"] == used
    assert stack.gateway is not None
    stack.gateway.signal(signal.SIGTERM)
    assert stack.gateway.wait(30) == 0
    stack.gateway.stop()
    stack.start_gateway()
    wait_until(stack.is_ready, "the gateway is ready")
    assert spent(stack, key_id)["tokens"] == used
    with pytest.raises(openai.RateLimitError, match=f"budget of 600 tokens .*of which {used} are spent") as caught:
        asked(stack, key, max_tokens=600)
    assert caught.value.code == "insufficient_quota"
    again = stack.client.delete(f"/api/keys/{key_id}/spent")
    assert (again.status_code, again.json()["spent"]["tokens"]) == (200, 0)
    assert asked(stack, key, max_tokens=500)["used"]


def test_a_budget_for_costs_is_spent_by_the_prices_and_free_endpoints_cost_nothing(stack: Stack) -> None:
    stack.endpoint("dear", Simulation(answer_tokens=ANSWER), price={"input": 1_000, "output": 1_000})
    key_id, key = new_key(stack, budget={"cost": 0.6, "period": "day"})
    with ThreadPoolExecutor(4) as pool:  # each reserves some 510 tokens of the 600 that a price of 0.001 leaves
        answers = list(pool.map(lambda _: ask(stack, key, "dear", max_tokens=500), range(4)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    wait_until(lambda: spent(stack, key_id)["reserved_cost"] == 0, "all have ended")
    now = spent(stack, key_id)
    assert now["cost"] == pytest.approx(used / 1_000)
    assert now["tokens"] == used > 0
    refused = ask(stack, key, "dear", max_tokens=590)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert "has a budget of 0.6 for what its requests cost (day)" in refused.json()["error"]["message"]
    asked(stack, key, max_tokens=5_000)
    assert spent(stack, key_id)["cost"] == pytest.approx(used / 1_000)
    assert stack.client.post("/api/keys", json={"name": "none", "budget": {"period": "day"}}).status_code == 400


def test_a_client_that_leaves_gives_back_what_it_reserved_and_pays_for_what_came(stack: Stack) -> None:
    key_id, key = new_key(stack, budget={"tokens": 10_000, "period": "total"})
    with httpx.Client(base_url=stack.address, headers=bearer(key), timeout=30) as user:
        with user.stream("POST", CHAT, json=chat("slow", stream=True, max_tokens=5_000)) as running:
            lines = running.iter_lines()
            next(lines)
            assert spent(stack, key_id)["reserved"] > 5_000
        wait_until(lambda: spent(stack, key_id)["reserved"] == 0, "the request has ended")
    assert 0 < spent(stack, key_id)["tokens"] < 1_000


# people


def test_a_person_signs_in_with_a_token_and_has_the_scopes_of_the_roles(stack: Stack, issuer: Issuer) -> None:
    user, admin = issuer.token(sub="u-1"), issuer.token(sub="u-2", realm_access={"roles": ["admins"]})
    assert asked(stack, user)["used"]
    assert "first" in [model["id"] for model in stack.client.get("/v1/models", headers=bearer(user)).json()["data"]]
    refused = stack.client.get("/api/keys", headers=bearer(user))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert stack.client.get("/api/keys", headers=bearer(admin)).status_code == 200
    made = stack.client.post("/api/keys", json={"name": "by a person"}, headers=bearer(admin)).json()
    record = stack.client.get("/api/audit", params={"target": made["id"]}).json()
    assert "person:u-2" in str(record)
    rows = stack.client.get("/api/usage").json()["rows"]
    assert [row["requests"] for row in rows if row["name"] == "person:u-1"] == [1]


def test_a_token_that_is_not_the_issuers_is_refused_on_every_kind_of_route(stack: Stack, issuer: Issuer) -> None:
    name = 'hostler_sign_ins_failed_total{reason="token"}'
    before = stack.metrics().get(name, 0)
    old = issuer.token(exp=1)
    answers = [ask(stack, old)] + [stack.client.get(path, headers=bearer(old)) for path in ("/v1/models", "/api/keys")]
    assert [answer.status_code for answer in answers] == [401] * 3
    assert all("expired" in answer.json()["error"]["message"] for answer in answers)
    assert stack.metrics()[name] == before + 3


def test_no_token_and_no_key_is_in_the_log(stack: Stack, issuer: Issuer) -> None:
    token, (_, key) = issuer.token(sub="u-3"), new_key(stack)
    assert ask(stack, token).status_code == ask(stack, key).status_code == 200
    assert ask(stack, token[:-4] + "AAAA").status_code == 401
    assert stack.gateway is not None
    gateway = stack.gateway
    wait_until(lambda: "person:u-3" in gateway.output, "the request is in the log")
    assert token.rpartition(".")[2] not in gateway.output
    assert key not in gateway.output

"""What keys may do, what is kept of what they do, and what limits them, where several parts have to work together."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.stack import Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ANSWER, LONG = 5, 3_000


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    settings = {"HOSTLER_STREAM_GRACE_SECONDS": "0.2", "HOSTLER_HEARTBEAT_SECONDS": "0.2"}
    with running_stack(settings) as started:
        started.endpoint("first", Simulation(answer_tokens=ANSWER))
        started.endpoint("slow", Simulation(tokens_per_second=100, answer_tokens=100_000))
        started.endpoint("long", Simulation(answer_tokens=LONG))
        yield started


class User:
    """A caller with a key of its own."""

    def __init__(self, stack: Stack, **fields: Any) -> None:
        made = stack.client.post("/api/keys", json={"name": "of a test", **fields})
        assert made.status_code == 201, made.text
        self.id, self.key = made.json()["id"], made.json()["key"]
        self.client = httpx.Client(base_url=stack.address, headers=bearer(self.key), timeout=60)

    def respond(self, **fields: Any) -> httpx.Response:
        """One request to `/v1/responses`."""
        return self.client.post(RESPONSES, json={"model": "first", "input": "hello", **fields})


@contextlib.contextmanager
def users(stack: Stack, *wanted: dict[str, Any]) -> Iterator[list[User]]:
    """So many callers."""
    with contextlib.ExitStack() as closing:
        made = [User(stack, **fields) for fields in wanted]
        for user in made:
            closing.callback(user.client.close)
        yield made


# responses that engines keep


def test_a_stored_response_is_there_for_the_key_that_made_it_and_for_no_other(stack: Stack) -> None:
    with users(stack, {}, {"scopes": ["admin"]}) as (owner, other):
        for made in (owner.respond(), owner.respond(stream=True)):
            assert made.status_code == 200, made.text
            kept = made.text.partition('"id":')[2].partition('"')[2].partition('"')[0]
            assert kept.startswith("resp_")
            path = f"{RESPONSES}/{kept}"
            assert owner.client.get(path).json()["id"] == kept
            assert owner.respond(previous_response_id=kept).status_code == 200
            for attempt in (
                other.client.get(path),
                other.client.post(f"{path}/cancel"),
                other.respond(previous_response_id=kept),
                other.respond(previous_response_id=kept, stream=True),
                stack.client.get(path),
            ):
                assert (attempt.status_code, attempt.json()["error"]["code"]) == (404, "not_found"), attempt.text
            # a request may name its answer's id: that does not make the one before its own
            assert other.respond(request_id=kept, store=False).status_code == 200
            assert other.client.get(path).status_code == 404
            assert owner.client.get(path).status_code == 200
        assert owner.respond(previous_response_id="resp_none").status_code == 404
        assert owner.respond(previous_response_id=None).status_code == 200


def test_asking_for_a_stored_response_counts_as_a_request_and_takes_no_tokens(stack: Stack) -> None:
    limits = {"requests_per_minute": 3, "tokens_per_minute": 10_000}
    with users(stack, {"limits": limits, "budget": {"tokens": 10_000}}) as (user,):
        path = f"{RESPONSES}/{user.respond(max_output_tokens=5).json()['id']}"
        spent = stack.client.get(f"/api/keys/{user.id}").json()["spent"]["tokens"]
        fetched = user.client.get(path)
        assert (fetched.status_code, fetched.headers["x-ratelimit-remaining-requests"]) == (200, "1")
        assert user.client.get(path).status_code == 200
        assert user.client.get(path).status_code == 429
        assert user.respond().status_code == 429
        after = stack.client.get(f"/api/keys/{user.id}").json()["spent"]
        assert (after["tokens"], after["reserved"]) == (spent, 0)
        rows = stack.client.get("/api/usage").json()["rows"]
        assert [row["tokens_in"] + row["tokens_out"] for row in rows if row["name"] == user.id] == [spent]


# limits and revocation


def test_a_stream_that_waits_for_its_limits_gets_heartbeats_and_then_its_answer_or_an_error(stack: Stack) -> None:
    patient, hasty = {"x-hostler-timeout": "60"}, {"x-hostler-timeout": "2"}
    with users(stack, {"limits": {"concurrency": 1}}) as (user,), ThreadPoolExecutor(2) as pool:
        with user.client.stream("POST", CHAT, json=chat("slow", stream=True)) as running:
            lines = running.iter_lines()
            next(lines)
            ask = user.client.post
            in_vain = pool.submit(ask, CHAT, json=chat("first", stream=True), headers=hasty)
            told = in_vain.result(60)
            assert (told.status_code, told.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert ": waiting for the limits" in told.text
            assert "rate_limit_exceeded" in told.text
            got = threading.Event()
            seen: list[str] = []

            def wait_for_it() -> None:
                with user.client.stream("POST", CHAT, json=chat("first", stream=True), headers=patient) as answer:
                    for line in answer.iter_lines():
                        seen.append(line)
                        got.set()

            waiting = pool.submit(wait_for_it)
            assert got.wait(60), "a heartbeat while the other one runs"
        waiting.result(60)
    assert seen[0].startswith(": waiting for the limits")
    assert seen.count("data: [DONE]") == 1
    assert any("queue-ms" in line for line in seen)


def test_a_client_that_leaves_while_it_waits_for_its_limits_takes_nothing(stack: Stack) -> None:
    with users(stack, {"limits": {"concurrency": 1}}) as (user,):
        with user.client.stream("POST", CHAT, json=chat("slow", stream=True)) as running:
            lines = running.iter_lines()
            next(lines)
            with user.client.stream(
                "POST", CHAT, json=chat("first", stream=True), headers={"x-hostler-timeout": "60"}
            ) as waiting:
                comments = waiting.iter_lines()
                assert next(comments).startswith(": waiting")
        wait_until(
            lambda: user.client.post(CHAT, json=chat("first")).status_code == 200, "the key is free again", seconds=60
        )


def test_a_revoked_key_ends_what_waits_and_lets_answers_end_that_have_begun(stack: Stack) -> None:
    with (
        users(stack, {"limits": {"concurrency": 1}}) as (user,),
        ThreadPoolExecutor(2) as pool,
        user.client.stream("POST", CHAT, json=chat("slow", stream=True, max_tokens=100)) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        headers = {"x-hostler-timeout": "60"}
        got = threading.Event()
        seen: list[str] = []

        def wait_for_it() -> None:
            with user.client.stream("POST", CHAT, json=chat("first", stream=True), headers=headers) as answer:
                for line in answer.iter_lines():
                    seen.append(line)
                    got.set()

        waiting = pool.submit(wait_for_it)
        assert got.wait(60)
        assert stack.client.delete(f"/api/keys/{user.id}").status_code == 204
        assert user.client.post(CHAT, json=chat("first")).status_code == 401
        waiting.result(60)
        assert "invalid_api_key" in "".join(seen)
        assert "revoked" in "".join(seen)
        assert "data: [DONE]" in list(lines)


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 100}])
def test_a_budget_is_overshot_by_one_request_at_most_whatever_they_say_of_their_length(
    stack: Stack, fields: dict[str, int]
) -> None:
    one, budget = fields.get("max_tokens", LONG), 5_000 if not fields else 450
    with users(stack, {"budget": {"tokens": budget, "period": "total"}}) as (user,), ThreadPoolExecutor(12) as pool:
        body = {"model": "long", "messages": [{"role": "user", "content": "a b c d " * 5}], **fields}

        def ask(number: int) -> int:
            headers = {"x-hostler-timeout": "60"} if number % 2 else {}
            return user.client.post(CHAT, json={**body, "stream": False}, headers=headers).status_code

        statuses = list(pool.map(ask, range(12)))
        spent = stack.client.get(f"/api/keys/{user.id}").json()["spent"]
        assert set(statuses) == {200, 429}
        assert spent["reserved"] == 0
        assert one <= spent["tokens"] <= budget + (one + 50 if not fields else 0)


def test_a_restart_begins_no_new_minute_and_forgets_no_use_of_a_key(stack: Stack) -> None:
    limits = {"requests_per_minute": 4, "tokens_per_minute": 100_000}
    with users(stack, {"limits": limits}, {}) as (user, other):
        began = time.monotonic()
        kept = f"{RESPONSES}/{user.respond(max_output_tokens=5).json()['id']}"
        assert user.client.get(kept).headers["x-ratelimit-remaining-requests"] == "2"
        assert other.client.post(CHAT, json=chat("first")).status_code == 200
        gateway = stack.gateway
        assert gateway is not None
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(60) == 0
        gateway.stop()
        gateway = stack.start_gateway()
        wait_until(stack.is_ready, "the gateway is ready")
        for one in (user, other):
            assert stack.client.get(f"/api/keys/{one.id}").json()["last_used_at"] is not None
        # nobody knows any more whose response it is: so it is nobody's
        assert user.client.get(kept).status_code == 404
        third = user.client.post(CHAT, json=chat("first"))
        assert third.status_code == 200
        file = stack.folder / "data" / "minutes.json"

        def taken() -> int:
            requests = json.loads(file.read_bytes())["keys"].get(user.id, [[], []])[0]
            return sum(amount for _, amount in requests)

        wait_until(lambda: taken() == 3 or time.monotonic() - began > 50, "the minute is kept", seconds=60)
        gateway.kill()
        gateway.stop()
        stack.start_gateway()
        wait_until(stack.is_ready, "the gateway is ready")
        statuses = [user.client.post(CHAT, json=chat("first")).status_code for _ in range(2)]
        if time.monotonic() - began < 50:  # else the minute may be over, on a machine that stood still
            assert statuses == [200, 429]


def test_a_request_of_management_that_is_too_large_is_told_the_limit_of_its_route(stack: Stack) -> None:
    answer = stack.client.post("/api/keys", content=b'{"name": "' + b"x" * (5 << 20) + b'"}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "4 MiB" in answer.json()["error"]["message"]


# captures


def test_captured_tool_calls_and_media_are_redacted_and_go_by_the_key_that_is_gone(stack: Stack) -> None:
    arguments = json.dumps({"to": "anna@example.org", "card": "4111 1111 1111 1111"}).replace("@", "\\u0040")
    called = [{"id": "1", "type": "function", "function": {"name": "send", "arguments": arguments}}]
    audio = {"type": "input_audio", "input_audio": {"data": "QUJD" * 1000, "format": "wav"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hear this"}, audio]},
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "1", "content": '{"sent": "+49 30 1234567"}'},
    ]
    with users(stack, {}) as (user,):
        assert stack.client.put(f"/api/captures/{user.id}").status_code == 204
        for stream in (False, True):
            body = {"model": "first", "messages": messages, "stream": stream}
            assert user.client.post(CHAT, json=body).status_code == 200
        assert user.respond(stream=True, input="write to anna@example.org").status_code == 200
        assert stack.client.delete(f"/api/keys/{user.id}").status_code == 204
    kept = stack.client.get("/api/captures", params={"key": user.id}).json()["captures"]
    texts = json.dumps(kept)
    assert len(kept) == 3
    assert all(one["answer"] for one in kept)
    assert all(word in texts for word in ("[email]", "[card]", "[phone]", "[data]", "hear this"))
    assert not any(secret in texts for secret in ("anna", "4111", "1234567", "QUJDQUJD"))
    assert stack.client.delete(f"/api/captures/{user.id}").json() == {"deleted": 3}
    assert stack.client.get("/api/captures").json()["keys"] == []


# the trail


def test_what_a_key_may_not_do_is_in_the_trail_in_sums(stack: Stack) -> None:
    with users(stack, {}, {"scopes": ["metrics"]}) as (user, machine):
        for _ in range(3):
            assert user.client.get("/api/keys").status_code == 403
        assert machine.client.get("/metrics").status_code == 200
        assert machine.client.post(CHAT, json=chat("first")).status_code == 403
        found: dict[tuple[str, ...], int] = {}
        for record in stack.client.get("/api/audit", params={"action": "access.denied"}).json()["records"]:
            what = (record["who"], record["to"]["scope"], record["target"])
            found[what] = found.get(what, 0) + record["to"]["count"]
    assert found == {(user.id, "admin", "/api/keys"): 3, (machine.id, "inference", CHAT): 1}

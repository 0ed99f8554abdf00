"""What was used, counted through a real gateway: exact where the engine tells, and never lost but by kill -9."""

import csv
import signal
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.engine_simulator import text
from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.raw_http import RawConnection
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me of the sea"}]
ANSWER = 7
PROMPT = text.token_count(text.render(MESSAGES))
PLAIN = text.token_count(b"hello")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack({"HOSTLER_COST_UNIT": "EUR"}) as started:
        yield started


def usage(stack: Stack, by: str = "key", **parameters: str) -> dict[str, dict[str, Any]]:
    """The rows of the report, by name."""
    answer = stack.client.get("/api/usage", params={"by": by, **parameters})
    assert answer.status_code == 200, answer.text
    assert answer.json()["unwritten"] == 0
    return {row["name"]: row for row in answer.json()["rows"]}


def new_key(stack: Stack) -> tuple[str, str]:
    """A fresh key: its id and itself."""
    made = stack.client.post("/api/keys", json={"name": "of a test"}).json()
    return made["id"], made["key"]


def official(stack: Stack, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.address}/v1", api_key=key, max_retries=0)


def row_of(stack: Stack, key_id: str) -> dict[str, Any]:
    """A key's sums, without its times, its name and its cost."""
    row = usage(stack)[key_id]
    left = ("name", "mean_", "token_cost", "gpu_", "energy_")
    return {name: value for name, value in row.items() if not name.startswith(left)}


def sums(requests: int, **others: int) -> dict[str, int]:
    zero = dict.fromkeys(("errors", "clients_gone", "estimated", "tokens_in", "tokens_out", "tokens_cached"), 0)
    return {"requests": requests, **zero, **others}


def test_every_route_is_counted_as_the_engine_counts(stack: Stack) -> None:
    stack.endpoint("counted", Simulation(answer_tokens=ANSWER), aliases=["alias"])
    stack.endpoint("vectors", Simulation(kind="embed"))
    key_id, key = new_key(stack)
    with official(stack, key) as client:
        for _ in range(2):
            client.chat.completions.create(model="counted", messages=MESSAGES)
        for _ in client.chat.completions.create(model="alias", messages=MESSAGES, stream=True):
            pass
        for _ in client.chat.completions.create(
            model="alias", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ):
            pass
        client.completions.create(model="counted", prompt="hello", max_tokens=5)
        for _ in client.completions.create(model="counted", prompt="hello", max_tokens=5, stream=True):
            pass
        client.responses.create(model="counted", input="hello")
        for _ in client.responses.create(model="counted", input="hello", stream=True):
            pass
        vectors = client.embeddings.create(model="vectors", input=["hello", "hello"])
    headers = {"x-api-key": key}
    for stream in (False, True):
        body = {"model": "counted", "messages": MESSAGES, "max_tokens": 4, "stream": stream}
        stack.client.post("/v1/messages", json=body, headers=headers | {"authorization": ""}).raise_for_status()
    assert row_of(stack, key_id) == sums(
        11,
        tokens_in=6 * PROMPT + 4 * PLAIN + vectors.usage.prompt_tokens,
        tokens_out=4 * ANSWER + 2 * 5 + 2 * ANSWER + 2 * 4,
    )
    by_endpoint = usage(stack, "endpoint")
    assert by_endpoint["counted"]["requests"] == 10
    on_cpus = {name: by_endpoint["counted"][name] for name in ("gpu_seconds", "gpu_cost", "energy_wh", "energy_cost")}
    assert on_cpus == {"gpu_seconds": 0, "gpu_cost": 0, "energy_wh": None, "energy_cost": None}
    assert by_endpoint["vectors"]["requests"] == 1
    assert by_endpoint["counted"]["mean_total_ms"] >= by_endpoint["counted"]["mean_first_byte_ms"] >= 0


def test_cached_tokens_are_counted_as_the_engine_tells_them(stack: Stack) -> None:
    stack.endpoint("cached", Simulation(answer_tokens=2))
    key_id, key = new_key(stack)
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the sea " * 500}]
    with official(stack, key) as client:
        answers = [client.chat.completions.create(model="cached", messages=long).usage for _ in range(3)]
    told = sum(
        (usage.prompt_tokens_details.cached_tokens or 0) for usage in answers if usage and usage.prompt_tokens_details
    )
    assert told > 0
    assert row_of(stack, key_id)["tokens_cached"] == told


def test_refusals_and_broken_streams_are_errors_and_what_came_of_them_is_estimated(stack: Stack) -> None:
    stack.endpoint("broken", Simulation(answer_tokens=ANSWER))
    key_id, key = new_key(stack)
    with official(stack, key) as client:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="broken", messages=MESSAGES, max_tokens=10_000_000)
        stack.behave("broken", Simulation(answer_tokens=ANSWER, faults=Faults(cut_stream_after=3)))
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="broken", messages=MESSAGES, stream=True))
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="no such thing", messages=MESSAGES)
    row = row_of(stack, key_id)
    assert (row["requests"], row["errors"], row["estimated"]) == (2, 2, 1)
    assert 3 <= row["tokens_out"] <= 4
    assert row["tokens_in"] > 0


def test_a_client_that_left_is_counted_with_what_it_got(stack: Stack) -> None:
    stack.endpoint("left", Simulation(tokens_per_second=100, answer_tokens=100_000))
    key_id, key = new_key(stack)
    with (
        httpx.Client(base_url=stack.address, headers=bearer(key), timeout=30) as user,
        user.stream("POST", CHAT, json=chat("left", stream=True)) as answer,
    ):
        got = 0
        for line in answer.iter_lines():
            got += '"content"' in line
            if got > 5:
                break
    wait_until(lambda: key_id in usage(stack), "the request has ended")
    row = row_of(stack, key_id)
    assert (row["requests"], row["clients_gone"], row["errors"], row["estimated"]) == (1, 1, 0, 1)
    assert row["tokens_out"] >= 5


# what it costs


def test_each_request_costs_what_its_time_says_and_a_new_price_rewrites_nothing(stack: Stack) -> None:
    stack.endpoint("priced", Simulation(answer_tokens=ANSWER), aliases=["priced-too"])
    key_id, key = new_key(stack)
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the sea " * 500}]
    expected = 0.0
    with official(stack, key) as client:
        client.chat.completions.create(model="priced", messages=long)  # while there is no price
        for price in ({"input": 2, "cached_input": 0.5, "output": 8}, {"input": 4, "output": 16}):
            changed = stack.client.patch("/api/endpoints/priced", json={"price": price})
            assert changed.json()["price"] == {"input": 0, "cached_input": None, "output": 0, "gpu_hour": 0} | price
            for model in ("priced", "priced-too"):
                told = client.chat.completions.create(model=model, messages=long).usage
                assert told is not None
                assert told.prompt_tokens_details is not None
                cached = told.prompt_tokens_details.cached_tokens or 0
                assert cached > 0
                dear = price["input"] * (told.prompt_tokens - cached) + price["output"] * told.completion_tokens
                expected += (dear + price.get("cached_input", price["input"]) * cached) / 1_000_000
    stack.client.patch("/api/endpoints/priced", json={"price": None}).raise_for_status()
    assert usage(stack)[key_id]["token_cost"] == pytest.approx(expected, abs=1e-9)
    assert usage(stack, "endpoint")["priced"]["token_cost"] == pytest.approx(expected, abs=1e-9)
    table = stack.client.get("/api/usage?by=key&format=csv").text.splitlines()
    [cost] = [float(row["token_cost"]) for row in csv.DictReader(table) if row["key"] == key_id]
    assert cost == pytest.approx(expected, abs=1e-9)
    changes = stack.client.get("/api/audit?action=endpoint.change&target=priced").json()["records"]
    assert changes[0]["to"]["price"] is None
    assert {change["from"]["price"]["output"] for change in changes if change["from"].get("price")} == {8, 16}
    assert stack.client.get("/api/usage").json()["unit"] == "EUR"


def test_a_price_that_makes_no_sense_is_refused(stack: Stack) -> None:
    for price in ({"output": -1}, {"tokens": 1}, 5):
        answer = stack.client.patch("/api/endpoints/counted", json={"price": price})
        assert answer.status_code in {400, 404}
        made = {"name": "never", "model": "local/never", "price": price}
        assert stack.client.post("/api/endpoints", json=made).status_code == 400


# the report


def test_the_report_is_for_days_and_in_the_form_that_is_asked_for(stack: Stack) -> None:
    stack.endpoint("reported", Simulation(answer_tokens=ANSWER))
    stack.ask("reported").raise_for_status()
    today = datetime.now(UTC).date().isoformat()
    assert today in usage(stack, "day")
    assert usage(stack, "day", **{"from": "2020-01-01", "to": "2020-01-31"}) == {}
    report = stack.client.get("/api/usage", params={"by": "endpoint", "from": today, "to": today}).json()
    assert (report["by"], report["from"], report["to"]) == ("endpoint", today, today)
    assert report["total"]["requests"] == sum(row["requests"] for row in report["rows"])
    by_parameter = stack.client.get("/api/usage?by=endpoint&format=csv")
    by_header = stack.client.get("/api/usage?by=endpoint", headers={"accept": "text/csv"})
    for answer in (by_parameter, by_header):
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        rows = {row["endpoint"]: row for row in csv.DictReader(answer.text.splitlines())}
        assert int(rows["reported"]["tokens_out"]) == ANSWER
    assert stack.client.get("/api/usage", params={"by": "day"}).json()["rows"][-1]["name"] == today


def test_single_requests_are_told_in_pages_with_what_each_cost(stack: Stack) -> None:
    stack.endpoint("single", Simulation(answer_tokens=ANSWER), price={"output": 1_000})
    key_id, key = new_key(stack)
    ids = [f"single-{number}" for number in range(5)]
    for one in ids:
        headers = bearer(key) | {"x-request-id": one}
        stack.client.post(CHAT, json=chat("single"), headers=headers).raise_for_status()
    found: list[dict[str, Any]] = []
    query = {"key": key_id, "endpoint": "single", "limit": "2"}
    while query.get("before") is not None or not found:
        page = stack.client.get("/api/usage/requests", params=query).json()
        assert len(page["requests"]) <= 2
        assert (page["unit"], page["unwritten"]) == ("EUR", 0)
        found += page["requests"]
        query["before"] = page["next"]
    assert [one["request_id"] for one in found] == ids[::-1]
    for record in found:
        assert (record["key"], record["endpoint"], record["status"], record["tokens_out"]) == (
            key_id,
            "single",
            200,
            ANSWER,
        )
        assert (record["cost"], record["priority"], record["stream"]) == (ANSWER / 1_000, "interactive", False)
        assert record["total_ms"] >= record["first_byte_ms"] >= record["queue_ms"] >= 0
    table = stack.client.get("/api/usage/requests", params={"key": key_id, "format": "csv", "limit": "3"})
    assert [row["request_id"] for row in csv.DictReader(table.text.splitlines())] == ids[:1:-1]
    rest = stack.client.get(
        "/api/usage/requests", params={"key": key_id, "format": "csv", "before": table.headers["x-hostler-next"]}
    )
    assert [row["request_id"] for row in csv.DictReader(rest.text.splitlines())] == ids[1::-1]
    assert "x-hostler-next" not in rest.headers
    for days in ({"from": "0001-01-01", "to": "9999-12-31"}, {"from": "9999-12-31", "to": "9999-12-31"}):
        assert stack.client.get("/api/usage/requests", params=days).status_code == 200
    for name, value in (("limit", "0"), ("before", "yesterday"), ("before", "1-" + "9" * 30), ("by", "key")):
        refused = stack.client.get("/api/usage/requests", params={name: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    assert httpx.get(f"{stack.address}/api/usage/requests", headers=bearer(key), timeout=30).status_code == 403


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("by=user", "endpoint"),
        ("from=yesterday", "2026-11-23"),
        ("to=2026-13-01", "2026-11-23"),
        ("from=2026-11-02&to=2026-11-01", "later"),
        ("format=xml", "csv"),
        ("group=key", "by"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_what_would(stack: Stack, query: str, word: str) -> None:
    answer = stack.client.get(f"/api/usage?{query}")
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_the_report_is_for_admins(stack: Stack) -> None:
    _, key = new_key(stack)
    assert httpx.get(f"{stack.address}/api/usage", headers=bearer(key), timeout=30).status_code == 403
    assert httpx.get(f"{stack.address}/api/usage", timeout=30).status_code == 401


# what may be lost


def held(stack: Stack) -> sqlite3.Connection:
    """A connection that keeps every other from writing, as a stuck backup program would."""
    connection = sqlite3.connect(stack.folder / "data" / "hostler.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def recorded(stack: Stack, endpoint: str) -> int:
    """How many requests stand in the file, read past the gateway."""
    connection = sqlite3.connect(stack.folder / "data" / "hostler.db")
    try:
        [(count,)] = connection.execute("SELECT count(*) FROM usage_requests WHERE endpoint = ?", (endpoint,))
        [(total,)] = connection.execute("SELECT sum(requests) FROM usage_days WHERE endpoint = ?", (endpoint,))
    finally:
        connection.close()
    assert count == (total or 0)
    return int(count)


def test_a_database_that_takes_no_writes_stops_no_request_and_loses_none(stack: Stack) -> None:
    stack.endpoint("held", Simulation(answer_tokens=ANSWER))
    stack.ask("held").raise_for_status()
    usage(stack)
    holder = held(stack)
    try:
        for _ in range(10):
            assert stack.ask("held").status_code == 200
        assert recorded(stack, "held") == 1
    finally:
        holder.close()
    wait_until(lambda: recorded(stack, "held") == 11, "everything is written", seconds=30)


def test_a_stop_writes_every_request_of_its_last_moment() -> None:
    with running_stack() as stack:
        stack.endpoint("stopped", Simulation(answer_tokens=20, tokens_per_second=20))
        stack.ask("stopped", max_tokens=1).raise_for_status()
        assert stack.gateway is not None
        with RawConnection(stack.port) as raw:
            raw.post(CHAT, chat("stopped", stream=True), ADMIN_KEY)
            raw.read_until(b"data: ")
            stack.gateway.signal(signal.SIGTERM)
            assert b"[DONE]" in raw.read_to_end()
        assert stack.gateway.wait(30) == 0
        assert recorded(stack, "stopped") == 2


def test_a_kill_costs_at_most_the_last_second() -> None:
    with running_stack() as stack:
        stack.endpoint("killed", Simulation(answer_tokens=1))
        stack.ask("killed").raise_for_status()
        ended: list[float] = []
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            stack.ask("killed").raise_for_status()
            ended.append(time.monotonic())
        assert stack.gateway is not None
        killed = time.monotonic()
        stack.gateway.kill()
        assert recorded(stack, "killed") >= 1 + sum(at < killed - 1.0 for at in ended)

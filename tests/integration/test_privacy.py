"""What people send, and their keys, stay out of all that Hostler writes; what is captured on demand is redacted."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.battery import Tell
from tests.support.processes import REPOSITORY
from tests.support.raw_server import raw_server, read_call
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

PROMPT, SYSTEM, TOOL, TEMPLATE = (f"canary-{name}-8d1f" for name in ("prompt", "system", "tool", "template"))
UNKNOWN_KEY, ENGINE_SECRET = "canary-unknown-key-8d1f", "canary-engine-secret-8d1f"
HUB_TOKEN = "hf_canaryHubToken8d1fCanaryHubToken"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    settings = {
        "HOSTLER_LOG_LEVEL": "debug",
        "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} SOME_TOKEN={ENGINE_SECRET}",
        "HF_TOKEN": HUB_TOKEN,
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    with running_stack(settings) as started:
        started.endpoint("here")
        yield started


def bodies() -> Iterator[tuple[str, dict[str, object]]]:
    """Requests of each kind that carry a canary, good and bad ones."""
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
    for stream in (False, True):
        yield CHAT, {"model": "here", "messages": said, "stream": stream, "max_tokens": 8}
        yield "/v1/completions", {"model": "here", "prompt": PROMPT, "stream": stream, "max_tokens": 8}
        yield "/v1/responses", {"model": "here", "input": PROMPT, "instructions": SYSTEM, "stream": stream}
        asked = {"model": "here", "messages": said[1:], "system": SYSTEM, "max_tokens": 8, "stream": stream}
        yield "/v1/messages", asked
    yield "/tokenize", {"model": "here", "prompt": PROMPT}
    yield "/v1/embeddings", {"model": "here", "input": PROMPT}
    # what is refused says why, and not what was in it
    yield CHAT, {"model": "nobody", "messages": said}
    yield CHAT, {"model": "here", "messages": said, "stream": PROMPT}
    yield CHAT, {"model": "here", "messages": said, "chat_template": TEMPLATE}
    yield CHAT, {"model": "here", "messages": said, "n": PROMPT}
    yield CHAT, {"model": "here", "messages": [PROMPT], "tools": [TOOL], "stop": [[]]}
    yield CHAT, {"model": "here", "messages": said, "tools": [{"pattern": TOOL + "{5000}"}]}
    yield CHAT, {"model": "here", "messages": [{"content": [{"image_url": f"http://{PROMPT}"}]}]}


def answers_of(stack: Stack, key: str) -> tuple[list[str], str]:
    """Send everything; the bodies of errors, and some text that an engine answered."""
    errors: list[str] = []
    said = ""
    with httpx.Client(base_url=stack.address, headers=bearer(key), timeout=30) as client:
        for path, body in bodies():
            answer = client.post(path, json=body)
            if answer.is_error:
                errors.append(answer.text)
            elif path == CHAT and not body.get("stream"):
                said = answer.json()["choices"][0]["message"]["content"]
        half = json.dumps(chat("here", PROMPT))[:-2].encode()
        errors.append(client.post(CHAT, content=half).text)
        errors.append(client.post(CHAT, json=chat("here", PROMPT), headers={"x-hostler-timeout": PROMPT}).text)
        errors.append(client.post(CHAT, json=chat("here"), headers=bearer(UNKNOWN_KEY)).text)
        errors.append(client.get("/api/keys", headers=bearer(key)).text)
        with stack.socket_hidden(stack.status("here")["workers"][0]["id"]):
            errors.append(client.post(CHAT, json=chat("here", PROMPT), headers={"x-hostler-timeout": "1"}).text)
    return errors, said


def echoes_of(stack: Stack, key: str) -> list[str]:
    """What is answered where the engine says all it was sent, as an error, as noise, and in a bad header."""
    echoes = []

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=stack.address, headers=bearer(key), timeout=30) as client:
            for stream in (False, True):
                answer = await client.post(CHAT, json={**chat("echoing", PROMPT), "stream": stream})
                echoes.append(answer.text)

    async def all_kinds(socket: Path) -> None:
        for head in (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n",
            b"HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n",
            PROMPT.encode() + b"\r\n",
            b"HTTP/1.1 200 OK\r\n" + PROMPT.encode() + b" is no header\r\n",
        ):

            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes = head) -> None:
                while True:
                    said = await read_call(reader, writer)
                    writer.write(head + b"content-length: %d\r\n\r\n" % len(said) + said)

            async with raw_server(echo, socket):
                await ask()

    stack.endpoint("echoing")  # the gateway has no connection to its engine yet
    stack.client.post("/api/endpoints/echoing/start").raise_for_status()
    wait_until(lambda: stack.status("echoing")["state"] == "hot", "its engine is ready", seconds=60)
    with stack.socket_hidden(stack.status("echoing")["workers"][0]["id"]) as socket:
        asyncio.run(all_kinds(socket))
    return echoes


def files_below(folder: Path) -> dict[str, bytes]:
    """All that is on the disk but for models: the database with its WAL, logs, decisions."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_socket() and "models" not in path.parts
    }


def test_no_prompt_no_answer_and_no_key_is_in_anything_that_is_written(stack: Stack, record_property: Tell) -> None:
    made = stack.client.post("/api/keys", json={"name": "of somebody"}).json()
    errors, said = answers_of(stack, made["key"])
    assert len(errors) >= 10
    assert len(said) > 8
    assert any(PROMPT in echo for echo in echoes_of(stack, made["key"]))
    # a download that fails, with the hub's token in its environment
    assert stack.client.post("/api/downloads", json={"model": "org/none"}).status_code < 300
    wait_until(lambda: "failed" in stack.client.get("/api/downloads").text, "the download has failed", seconds=60)
    rotated = stack.client.post(f"/api/keys/{made['id']}/rotate").json()["key"]
    shown = {
        path: stack.client.get(path).text
        for path in (
            "/metrics",
            "/api/audit",
            "/api/downloads",
            "/api/endpoints",
            "/api/host",
            "/api/keys",
            "/api/plan",
            "/api/plan/log",
            "/api/usage",
            "/api/workers",
            f"/api/workers/{stack.status('here')['workers'][0]['id']}/logs",
        )
    }
    stack.client.get("/api/usage", params={"by": "endpoint"})  # by then all usage is in the file
    places: dict[str, bytes] = {name: text.encode() for name, text in shown.items()}
    places |= {f"error {number}": text.encode() for number, text in enumerate(errors)}
    for process in (stack.gateway, stack.manager):
        assert process is not None
        places[f"log of {process}"] = process.output.encode()
    on_disk = files_below(stack.folder)
    assert any(name.endswith("hostler.db") for name in on_disk)
    places |= on_disk
    canaries = [PROMPT, SYSTEM, TOOL, TEMPLATE, UNKNOWN_KEY, ENGINE_SECRET, HUB_TOKEN]
    canaries += [ADMIN_KEY, made["key"], rotated, said]
    found = [(name, canary) for name, content in places.items() for canary in canaries if canary.encode() in content]
    assert found == []
    record_property("places looked at", f"{len(places)} for {len(canaries)} secrets, 0 found")


def test_every_line_of_both_logs_is_json_and_every_request_has_its_id_there(
    stack: Stack, record_property: Tell
) -> None:
    with httpx.Client(base_url=stack.address, headers=bearer(ADMIN_KEY), timeout=30) as client:
        answers = [client.post(path, json=body) for path, body in bodies()]
        answers += [client.get(path) for path in ("/api/keys", "/v1/models", "/nowhere")]
        answers.append(client.post(CHAT, json=chat("here"), headers=bearer(UNKNOWN_KEY)))
    told = [answer.headers["x-request-id"] for answer in answers]

    def logged() -> bool:
        return {line["request_id"] for line in stack.log_lines() if line["event"] == "request"} >= set(told)

    assert stack.manager is not None
    wait_until(logged, "every request has its line", seconds=30)
    lines = [*stack.log_lines(), *map(json.loads, stack.manager.output.splitlines())]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    record_property("lines", f"{len(lines):,} of {len(lines):,} are JSON")
    record_property("requests", f"{len(told)} of {len(told)} with their id")


def test_what_is_captured_on_demand_is_redacted_bounded_and_deleted_by_key(stack: Stack) -> None:
    made = [stack.client.post("/api/keys", json={"name": name}).json() for name in ("captured", "other")]
    captured, other = made
    path = f"/api/captures/{captured['id']}"
    assert stack.client.put(path).status_code == 204
    assert stack.client.put("/api/captures/nobody").status_code == 404
    secrets = ["anna@example.org", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "+49 30 1234567", other["key"]]
    said = f"marked {'; '.join(secrets)}; 1234 5678 9012 3456 stays"
    for one in made:
        with httpx.Client(base_url=stack.address, headers=bearer(one["key"]), timeout=30) as client:
            for stream in (False, True):
                assert client.post(CHAT, json={**chat("here", said), "stream": stream}).status_code == 200
            client.post(CHAT, json=chat("nowhere", said))
    page = stack.client.get("/api/captures").json()
    assert page["keys"] == [captured["id"]]
    assert [(one["key_id"], one["status"]) for one in page["captures"]] == [
        (captured["id"], 404),
        (captured["id"], 200),
        (captured["id"], 200),
    ]
    texts = json.dumps(page["captures"])
    for secret in secrets:
        assert secret not in texts
    _, streamed, whole = page["captures"]
    for one in (streamed, whole):
        assert all(word in one["prompt"] for word in ("[email]", "[card]", "[iban]", "[phone]", "[key]", "3456 stays"))
    assert json.loads(whole["answer"])["choices"][0]["message"]["content"]
    assert len(streamed["answer"]) > 8
    assert "data:" not in streamed["answer"]
    assert stack.client.delete(path).json() == {"deleted": 3}
    with httpx.Client(base_url=stack.address, headers=bearer(captured["key"]), timeout=30) as client:
        assert client.post(CHAT, json=chat("here", said)).status_code == 200
    left = stack.client.get("/api/captures").json()
    assert (left["keys"], left["captures"]) == ([], [])
    actions = [
        one["action"] for one in stack.client.get("/api/audit", params={"target": captured["id"]}).json()["records"]
    ]
    assert actions == ["capture.off", "capture.on", "key.create"]

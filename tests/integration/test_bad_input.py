"""Bad input: each kind gets its status, the one error shape, a message that says what to do, and changes nothing."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.processes import short_folder
from tests.support.raw_http import RawConnection
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

SETTINGS = {
    "HOSTLER_MAX_BODY_MIB": "1",
    "HOSTLER_HEADER_SECONDS": "1",
    "HOSTLER_BODY_SECONDS": "1",
    "HOSTLER_OFFLINE": "1",
}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(SETTINGS) as started:
        started.endpoint("first", aliases=["first-alias"])
        started.endpoint("second")
        (started.models / "local" / "bare").mkdir()
        yield started


@pytest.fixture(scope="module")
def gpu_stack() -> Iterator[Stack]:
    with short_folder() as folder:
        host = SimulatedHost.create(folder / "gpus", cards(2, memory_total_mib=8192))
        with running_stack({"HOSTLER_DEVICE": "cuda", **host.env}) as started:
            yield started


def state(stack: Stack) -> dict[str, Any]:
    """All that a request can change, but for the time at which a key was used."""
    keys = stack.client.get("/api/keys").json()
    endpoints = stack.client.get("/api/endpoints").json()
    return {
        "endpoints": [{name: value for name, value in one.items() if name != "status"} for one in endpoints],
        "keys": [{name: value for name, value in one.items() if name != "last_used_at"} for one in keys],
        "downloads": stack.client.get("/api/downloads").json(),
    }


@pytest.fixture
def unchanged(stack: Stack) -> Iterator[None]:
    """Whatever the test does leaves endpoints, keys and downloads as they were."""
    before = state(stack)
    yield
    assert state(stack) == before


def check_error(status: int, headers: Mapping[str, str], content: bytes, wanted: int, *words: str) -> dict[str, Any]:
    """The one error shape, this status, these words in the message, and an id to ask about."""
    body = json.loads(content)
    assert (status, set(body)) == (wanted, {"error"}), content
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["type"], error
    assert error["code"], error
    for word in words:
        assert word in error["message"], error
    assert "Traceback" not in error["message"]
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"]
    return error


def check(answer: httpx.Response, wanted: int, *words: str) -> dict[str, Any]:
    """`check_error` of an httpx answer."""
    return check_error(answer.status_code, answer.headers, answer.content, wanted, *words)


def make_key(stack: Stack, **fields: Any) -> tuple[str, str]:
    """Make a key: its id and the key."""
    made = stack.client.post("/api/keys", json={"name": "of a test", **fields})
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["key"]


@pytest.fixture
def key(stack: Stack) -> Iterator[Callable[..., str]]:
    """Makes keys that are gone after the test."""
    made: list[str] = []

    def make(**fields: Any) -> str:
        key_id, text = make_key(stack, **fields)
        made.append(key_id)
        return text

    yield make
    for key_id in made:
        stack.client.delete(f"/api/keys/{key_id}")


class Row(NamedTuple):
    """One line of the table: a request, its status, words of the message, and the field it blames."""

    what: str
    method: str
    path: str
    body: Any
    status: int
    words: tuple[str, ...]
    param: str | None = None
    headers: Mapping[str, str] = {}


CHAT = "/v1/chat/completions"
NEW = {"name": "new", "model": "local/first"}
FORM = {"content-type": "multipart/form-data; boundary=b"}

INFERENCE_ROWS = [
    Row("malformed JSON", "POST", CHAT, b'{"model": "first",', 400, ("JSON",)),
    Row("an array", "POST", CHAT, b"[1]", 400, ("object",)),
    Row("bytes that are no text", "POST", CHAT, b'{"model": "\xff\xfe"}', 400, ("body",)),
    Row("nothing at all", "POST", CHAT, b"", 400, ("empty", "model")),
    Row("no model", "POST", CHAT, {"messages": []}, 400, ("model", "GET /v1/models"), "model"),
    Row("model null", "POST", CHAT, {"model": None}, 400, ("model",), "model"),
    Row("model of the wrong type", "POST", CHAT, {"model": 7}, 400, ("model", "str")),
    Row("stream of the wrong type", "POST", CHAT, {"model": "first", "stream": "yes"}, 400, ("stream", "bool")),
    Row("a model near two", "POST", CHAT, chat("frist"), 404, ("'frist'", "'first'"), "model"),
    Row("a model near none", "POST", CHAT, chat("zzzz"), 404, ("'zzzz'", "'first'", "'second'"), "model"),
    Row("a form without a model", "POST", "/v1/audio/transcriptions", b"--b--\r\n", 400, ("model",), "model", FORM),
    Row("a timeout in words", "POST", CHAT, chat("first"), 400, ("number",), None, {"x-hostler-timeout": "soon"}),
    Row("a negative timeout", "POST", CHAT, chat("first"), 400, ("number",), None, {"x-hostler-timeout": "-1"}),
    Row("an unknown priority", "POST", CHAT, chat("first"), 400, ("batch",), None, {"x-hostler-priority": "now"}),
    Row("a timeout without end", "POST", CHAT, chat("first"), 400, ("number",), None, {"x-hostler-timeout": "inf"}),
    Row("GET on inference", "GET", CHAT, None, 405, (CHAT, "POST")),
    Row("PUT on inference", "PUT", "/v1/embeddings", chat("first"), 405, ("POST",)),
    Row("a response nobody made", "GET", "/v1/responses/resp_1", None, 404, ("resp_1",)),
    Row("a wrong method for a response", "DELETE", "/v1/responses/resp_1", None, 405, ("GET",)),
    Row("a wrong path below a response", "POST", "/v1/responses/resp_1/no", None, 404, ("resp_1",)),
]

PATH_ROWS = [
    Row(f"{method} {path}", method, path, {} if method == "POST" else None, 404, (path,))
    for method, path in [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("POST", "/v1/nothing"),
        ("POST", "/sleep"),
        ("POST", "/wake_up"),
        ("GET", "/is_sleeping"),
        ("POST", "/collective_rpc"),
        ("POST", "/reset_prefix_cache"),
        ("POST", "/invocations"),
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/docs"),
        ("GET", "/schema"),
        ("GET", "/simulator/stats"),
    ]
]

ENDPOINTS = "/api/endpoints"


def new(what: str, status: int, words: tuple[str, ...], param: str | None = None, **fields: Any) -> Row:
    """A line about POST /api/endpoints."""
    return Row(what, "POST", ENDPOINTS, {**NEW, **fields}, status, words, param)


ENDPOINT_ROWS = [
    Row("malformed JSON", "POST", ENDPOINTS, b"{", 400, ("JSON",)),
    Row("an empty body", "POST", ENDPOINTS, b"", 400, ("JSON",)),
    Row("no name", "POST", ENDPOINTS, {"model": "local/first"}, 400, ("name",)),
    Row("no model", "POST", ENDPOINTS, {"name": "new"}, 400, ("model",)),
    new("a name that can't be one", 400, ("name",), name="../etc"),
    new("an empty name", 400, ("name",), name=""),
    new("a path for a model", 400, ("model",), model="/etc/passwd"),
    new("a way out of the folder", 400, ("model",), model="local/.."),
    new("an unknown field", 400, ("min_worker",), min_worker=1),
    new("a field of the wrong type", 400, ("max_workers", "int"), max_workers="two"),
    new("no worker at all", 400, ("max_workers",), max_workers=0),
    new("a missing folder", 400, ("local/none", "local/first"), "model", model="local/none"),
    new("a folder without a config", 400, ("local/bare", "config.json"), "model", model="local/bare"),
    new("a name that is taken", 409, ("'first'", "taken"), "name", name="first"),
    new("the name of an alias", 409, ("'first-alias'", "alias", "'first'"), "name", name="first-alias"),
    new("an alias that is a name", 409, ("'second'",), "name", aliases=["second"]),
    new("an alias that is an alias", 409, ("'first-alias'",), "name", aliases=["first-alias"]),
    new("the same alias twice", 400, ("aliases",), "aliases", aliases=["a", "a"]),
    new("an alias that is its own name", 400, ("aliases",), "aliases", aliases=["new"]),
    new("an unknown flag", 400, ("max-num-seq'", "'max-num-seqs'"), "engine_args", engine_args={"max-num-seq": 1}),
    new("a flag with underscores", 400, ("'max-num-seqs'",), "engine_args", engine_args={"max_num_seqs": 1}),
    new(
        "a flag that loads code",
        400,
        ("trust-remote-code",),
        "engine_args",
        engine_args={"trust-remote-code": True},
    ),
    new("a flag of the wrong type", 400, ("integer", "'many'"), "engine_args", engine_args={"max-num-seqs": "many"}),
    new("more GPUs than there are", 400, ("1 GPU", "no GPU"), "gpus", gpus=1),
    new("GPU memory without GPUs", 400, ("gpu_memory_gib",), "gpu_memory_gib", gpu_memory_gib=4),
    new("more workers at least than at most", 400, ("min_workers",), "min_workers", min_workers=2),
    new("a hub model while offline", 409, ("switched off", "HOSTLER_OFFLINE"), "model", model="org/model"),
    Row("PATCH of a name", "PATCH", f"{ENDPOINTS}/first", {"name": "other"}, 400, ("renamed",), "name"),
    Row("PATCH of an unknown field", "PATCH", f"{ENDPOINTS}/first", {"x": 1}, 400, ("x",)),
    Row("PATCH with malformed JSON", "PATCH", f"{ENDPOINTS}/first", b"{", 400, ("JSON",)),
    Row("PATCH to a bad flag", "PATCH", f"{ENDPOINTS}/first", {"engine_args": {"x": 1}}, 400, ("'x'",), "engine_args"),
    Row("PATCH to a taken alias", "PATCH", f"{ENDPOINTS}/first", {"aliases": ["second"]}, 409, ("'second'",), "name"),
    Row("PATCH of nobody", "PATCH", f"{ENDPOINTS}/frist", {}, 404, ("'frist'", "'first'")),
    Row("DELETE of nobody", "DELETE", f"{ENDPOINTS}/frist", None, 404, ("'frist'", "'first'")),
    Row("GET of nobody", "GET", f"{ENDPOINTS}/frist", None, 404, ("'frist'", "'first'")),
    Row("start of nobody", "POST", f"{ENDPOINTS}/frist/start", None, 404, ("'frist'", "'first'")),
    Row("an unknown order", "POST", f"{ENDPOINTS}/first/jump", None, 404, ("start", "stop", "'jump'")),
    Row("PUT on endpoints", "PUT", ENDPOINTS, NEW, 405, (ENDPOINTS, "PUT")),
]

OTHER_ROWS = [
    Row("POST on models", "POST", "/v1/models", {}, 405, ("/v1/models",)),
    Row("a model nobody knows", "GET", "/v1/models/frist", None, 404, ("'frist'", "'first'")),
    Row("a bad name of a download", "POST", "/api/downloads", {"model": "no"}, 400, ("model",)),
    Row("a download of a local folder", "POST", "/api/downloads", {"model": "local/first"}, 400, ("local/",), "model"),
    Row("a download while offline", "POST", "/api/downloads", {"model": "org/model"}, 409, ("HOSTLER_OFFLINE",)),
    Row("an unknown download", "DELETE", "/api/downloads/nobody", None, 404, ("nobody",)),
    Row("logs of an unknown worker", "GET", "/api/workers/nobody/logs", None, 404, ("nobody",)),
    Row("logs of an impossible worker", "GET", "/api/workers/NO_BODY/logs", None, 404, ("NO_BODY",)),
    Row("logs with words for a number", "GET", "/api/workers/nobody/logs?lines=all", None, 400, ("lines",)),
    Row("a key without scopes", "POST", "/api/keys", {"name": "x", "scopes": []}, 400, ("scopes",), "scopes"),
    Row("a key with a wrong scope", "POST", "/api/keys", {"name": "x", "scopes": ["root"]}, 400, ("scopes",)),
    Row("a key of the past", "POST", "/api/keys", {"name": "x", "expires_at": 1}, 400, ("past",), "expires_at"),
    Row("an unknown key", "DELETE", "/api/keys/nobody", None, 404, ("nobody",)),
]


def send(stack: Stack, row: Row) -> httpx.Response:
    """Send a line of the table."""
    content = (
        row.body if isinstance(row.body, bytes) else json.dumps(row.body).encode() if row.body is not None else b""
    )
    return stack.client.request(row.method, row.path, content=content, headers=dict(row.headers))


def check_row(stack: Stack, row: Row) -> None:
    """Send it and compare."""
    error = check(send(stack, row), row.status, *row.words)
    assert error["param"] == row.param, error


def named(row: Row) -> str:
    """How pytest shows a line."""
    return row.what


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("row", INFERENCE_ROWS, ids=named)
def test_bad_inference_requests_are_refused(stack: Stack, row: Row) -> None:
    check_row(stack, row)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("row", PATH_ROWS, ids=named)
def test_a_route_that_is_not_ours_is_not_there_even_if_the_engine_has_it(stack: Stack, row: Row) -> None:
    check_row(stack, row)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("row", ENDPOINT_ROWS, ids=named)
def test_bad_endpoints_are_refused(stack: Stack, row: Row) -> None:
    check_row(stack, row)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("row", OTHER_ROWS, ids=named)
def test_bad_requests_to_the_other_routes_are_refused(stack: Stack, row: Row) -> None:
    check_row(stack, row)


# sizes and half requests


@pytest.mark.usefixtures("unchanged")
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(stack: Stack) -> None:
    with RawConnection(stack.port) as raw:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {ADMIN_KEY}\r\ncontent-length: {2 * MIB}\r\n\r\n"
        )
        raw.send(head.encode())
        answer = raw.answer()
        check_error(answer.status, answer.headers, answer.body, 413, "1 MiB", "HOSTLER_MAX_BODY_MIB")
        assert raw.is_closed()


@pytest.mark.usefixtures("unchanged")
def test_the_refusal_of_a_body_that_is_sent_all_the_same_arrives(stack: Stack) -> None:
    body = json.dumps(chat("first", "a" * 4 * MIB))
    check(stack.client.post(CHAT, content=body), 413, "1 MiB", "HOSTLER_MAX_BODY_MIB")


@pytest.mark.usefixtures("unchanged")
def test_a_body_in_chunks_is_refused_as_soon_as_it_is_too_large(stack: Stack) -> None:
    with RawConnection(stack.port) as raw:
        lines = (f"POST {CHAT} HTTP/1.1", "host: h", f"authorization: Bearer {ADMIN_KEY}", "transfer-encoding: chunked")
        head = "\r\n".join((*lines, "", ""))
        raw.send(head.encode() + b"".join(b"%x\r\n%s\r\n" % (65_536, b"a" * 65_536) for _ in range(17)))
        answer = raw.answer()
        check_error(answer.status, answer.headers, answer.body, 413, "1 MiB", "HOSTLER_MAX_BODY_MIB")
        assert raw.is_closed()


@pytest.mark.usefixtures("unchanged")
def test_a_body_too_large_for_the_api_is_refused(stack: Stack) -> None:
    answer = stack.client.post(ENDPOINTS, content=b'{"name": "' + b"a" * (5 * MIB) + b'"}')
    check(answer, 413, "larger")


@pytest.mark.usefixtures("unchanged")
def test_a_header_of_a_megabyte_is_refused(stack: Stack) -> None:
    with RawConnection(stack.port) as raw:
        raw.send(f"GET /v1/models HTTP/1.1\r\nhost: h\r\nx-long: {'a' * MIB}\r\n\r\n".encode())
        answer = raw.answer()
        check_error(answer.status, answer.headers, answer.body, 431, "64 KiB", "HOSTLER_MAX_HEADER_KIB")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", [CHAT, ENDPOINTS])
def test_a_half_sent_header_is_given_up(stack: Stack, path: str) -> None:
    with RawConnection(stack.port) as raw:
        raw.send(f"POST {path} HTTP/1.1\r\nhost: h\r\nauthoriz".encode())
        answer = raw.answer()
        check_error(answer.status, answer.headers, answer.body, 408, "header", "whole")
        assert raw.is_closed()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", [CHAT, ENDPOINTS, f"{ENDPOINTS}/first", "/api/keys", "/api/downloads"])
def test_a_half_sent_body_is_given_up(stack: Stack, path: str) -> None:
    method = "PATCH" if path.endswith("first") else "POST"
    with RawConnection(stack.port) as raw:
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {ADMIN_KEY}\r\ncontent-length: 100\r\n\r\n"
        )
        raw.send(head.encode() + b'{"model": ')
        answer = raw.answer()
        check_error(answer.status, answer.headers, answer.body, 408, "body", "whole")
        assert raw.is_closed()


@pytest.mark.usefixtures("unchanged")
def test_what_is_not_http_is_refused(stack: Stack) -> None:
    with RawConnection(stack.port) as raw:
        raw.send(b"hello, is this the model?\r\n\r\n")
        answer = raw.answer()
        check_error(answer.status, answer.headers, answer.body, 400, "HTTP")


# credentials


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/embeddings", "/tokenize"])
def test_inference_without_a_key_is_refused(stack: Stack, path: str) -> None:
    check(httpx.post(stack.address + path, json=chat("first")), 401, "Authorization", "HOSTLER_ADMIN_KEY")


@pytest.mark.parametrize(
    "path",
    ["/v1/models", ENDPOINTS, "/api/keys", "/api/host", "/api/workers", "/api/plan", "/api/downloads", "/metrics"],
)
def test_the_api_without_a_key_is_refused(stack: Stack, path: str) -> None:
    check(httpx.get(stack.address + path), 401, "Authorization")


@pytest.mark.parametrize(
    "headers",
    [
        bearer("hst_wrong"),
        {"authorization": "Bearer"},
        {"authorization": "Basic not-base64!"},
        {"authorization": "Digest x"},
        {"x-api-key": "wrong"},
        {"x-api-key": "schl\xfcssel".encode("latin-1")},
    ],
)
def test_a_bad_key_is_refused(stack: Stack, headers: dict[str, Any]) -> None:
    check(httpx.post(stack.address + CHAT, json=chat("first"), headers=headers), 401, "key")
    check(httpx.get(stack.address + ENDPOINTS, headers=headers), 401, "key")


def test_a_key_without_the_scope_is_refused(stack: Stack, key: Callable[..., str]) -> None:
    inference, endpoints = bearer(key(scopes=["inference"])), bearer(key(scopes=["endpoints"]))
    before = state(stack)
    check(httpx.post(stack.address + CHAT, json=chat("first"), headers=endpoints), 403, "inference")
    check(httpx.post(stack.address + ENDPOINTS, json=NEW, headers=inference), 403, "endpoints")
    for path in ("/api/keys", "/api/host", "/api/workers", "/api/plan", "/api/downloads"):
        check(httpx.get(stack.address + path, headers=inference), 403, "admin")
    check(httpx.post(stack.address + "/api/keys", json={"name": "x"}, headers=endpoints), 403, "admin")
    check(httpx.get(stack.address + "/metrics", headers=inference), 403, "metrics")
    assert state(stack) == before


def test_an_endpoint_of_others_is_answered_as_one_that_does_not_exist(stack: Stack, key: Callable[..., str]) -> None:
    headers = bearer(key(endpoints=["second"]))
    error = check(httpx.post(stack.address + CHAT, json=chat("first"), headers=headers), 404, "'first'", "'second'")
    assert error["code"] == "model_not_found"
    check(httpx.get(stack.address + "/v1/models/first", headers=headers), 404, "'second'")
    models = httpx.get(stack.address + "/v1/models", headers=headers).json()
    assert [model["id"] for model in models["data"]] == ["second"]


def test_an_expired_key_is_refused(stack: Stack, key: Callable[..., str]) -> None:
    headers = bearer(key(expires_at=time.time() + 0.3))

    def refused() -> bool:
        return httpx.get(stack.address + "/v1/models", headers=headers).status_code == 401

    wait_until(refused, "the key expires")
    check(httpx.get(stack.address + "/v1/models", headers=headers), 401, "expired")


def test_a_deleted_key_is_refused_from_the_next_request_on(stack: Stack) -> None:
    key_id, text = make_key(stack)
    assert httpx.get(stack.address + "/v1/models", headers=bearer(text)).status_code == 200
    assert stack.client.delete(f"/api/keys/{key_id}").status_code == 204
    check(httpx.get(stack.address + "/v1/models", headers=bearer(text)), 401)


def test_all_three_forms_of_a_credential_are_accepted(stack: Stack, key: Callable[..., str]) -> None:
    text = key()
    basic = base64.b64encode(f"{text}:".encode()).decode()
    for headers in (bearer(text), {"x-api-key": text}, {"authorization": f"Basic {basic}"}):
        assert httpx.get(stack.address + "/v1/models", headers=headers).status_code == 200
        answer = httpx.post(stack.address + CHAT, json=chat("first"), headers=headers, timeout=20)
        assert answer.status_code == 200


# GPUs


GPU_ROWS = [
    new("more GPUs than there are", 400, ("3 GPUs", "2 GPUs", "at most 2"), "gpus", gpus=3),
    new("more memory than a card has", 400, ("7680", "ask for less"), "gpu_memory_gib", gpu_memory_gib=8),
    new("a model that can't fit", 400, ("cannot fit", "MiB", "quantised"), "gpus", model="local/large"),
    new(
        "a model that can't fit into its share",
        400,
        ("cannot fit", "gpu_memory_gib"),
        "gpu_memory_gib",
        model="local/middling",
        gpu_memory_gib=4,
    ),
    new("GPU memory for a worker on the CPUs", 400, ("gpus 0",), "gpu_memory_gib", gpus=0, gpu_memory_gib=4),
]


@pytest.mark.parametrize("row", GPU_ROWS, ids=named)
def test_what_the_gpus_cannot_hold_is_refused(gpu_stack: Stack, row: Row) -> None:
    for name, mib in (("first", 0), ("middling", 4096), ("large", 8192)):
        with (gpu_stack.model(name) / "model.safetensors").open("wb") as weights:
            weights.truncate(mib * MIB)  # sparse: only its size is read
    before = state(gpu_stack)
    check_row(gpu_stack, row)
    assert state(gpu_stack) == before

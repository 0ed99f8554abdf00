"""The whole API against its own document: schemathesis, credentials for every operation, an engine's other routes.

`scripts/battery T29` is the long campaign, from a seed that it tells (HOSTLER_SCHEMA_SEED sets it). CI has one seed: a
finding of a new one belongs to no change.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.battery import WHOLE, Tell, size
from tests.support.processes import REPOSITORY
from tests.support.raw_http import RawConnection
from tests.support.schema_hooks import GROUND
from tests.support.stack import ADMIN_KEY, CLIENT_SECONDS, Stack, bearer, chat, running_stack

SECONDS = int(os.environ.get("HOSTLER_SCHEMA_SECONDS", size(10, 600)))
SEED = int(os.environ.get("HOSTLER_SCHEMA_SEED", SystemRandom().getrandbits(32) if WHOLE else 1))
SLACK_SECONDS = 90
"""For what is under way when the time is over, on a machine that does other things as well."""
SETTINGS = {
    "HOSTLER_OFFLINE": "1",
    "HOSTLER_SIGN_INS_PER_MINUTE": "1000000",  # wrong keys are a part of it
    "HOSTLER_QUEUE_SECONDS": "5",
    "HOSTLER_STOP_SECONDS": "2",
}
NOBODY = "nobody"
FORWARDED = r"^/(v1/(?!models)|tokenize|detokenize)"
CONFIGURATION = f"""
headers = {{ Authorization = "Bearer {ADMIN_KEY}" }}
hooks = "tests.support.schema_hooks"
seed = {SEED}
request-timeout = 30
max-time = {SECONDS}
continue-on-failure = true
suppress-health-check = ["all"]

[generation]
no-shrink = {str(not WHOLE).lower()}

[checks]
# what a machine can hold and which names are taken stands in no schema
positive_data_acceptance.enabled = false
# the hooks look at it more closely: some 503 are true
not_a_server_error.enabled = false

[[operations]]
include-path = "/api/events"
max-stream-events = 1

# an engine judges what it is sent, not the gateway
[[operations]]
include-path-regex = "{FORWARDED}"
checks.negative_data_rejection.enabled = false

# these share a route with the endpoint itself, whose name may hold slashes, and so its methods
[[operations]]
include-path-regex = "name./(start|stop|adapters)"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(SETTINGS) as started:
        started.endpoint(GROUND, min_workers=1)
        started.register("spare", f"local/{GROUND}", aliases=["spare-alias"])
        started.wait_for_state(GROUND, "hot")
        yield started


class Route(NamedTuple):
    """An operation of the document."""

    method: str
    path: str
    told: dict[str, Any]

    def sent_to(self, **names: str) -> str:
        """The path, with these in it, and nobody where nothing is said."""
        return re.sub(r"{(\w+)}", lambda found: names.get(found[1], NOBODY), self.path)


@pytest.fixture(scope="module")
def document(stack: Stack) -> dict[str, Any]:
    answer = httpx.get(f"{stack.address}/openapi.json", timeout=CLIENT_SECONDS)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


@pytest.fixture(scope="module")
def routes(document: dict[str, Any]) -> list[Route]:
    return [
        Route(method.upper(), path, told)
        for path, methods in document["paths"].items()
        for method, told in methods.items()
    ]


def assert_sound(stack: Stack) -> None:
    """Both processes are well, and neither has met what it did not foresee."""
    assert stack.client.get("/readyz").json()["status"] == "ok"
    for path in ("/api/endpoints", "/api/keys", "/api/plan", "/api/workers", "/v1/models", "/metrics"):
        assert stack.client.get(path).status_code == 200
    assert stack.gateway is not None
    assert stack.manager is not None
    for process in (stack.gateway, stack.manager):
        assert "Traceback" not in process.output, process.output


@pytest.mark.timeout(SECONDS + 2 * SLACK_SECONDS)
def test_no_request_that_schemathesis_thinks_of_is_answered_otherwise_than_the_document_says(
    stack: Stack, tmp_path: Path, record_property: Tell
) -> None:
    configuration, tally = tmp_path / "schemathesis.toml", tmp_path / "tally.json"
    configuration.write_text(CONFIGURATION)
    record_property("seed", SEED)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
            *("run", f"{stack.address}/openapi.json", "--warnings", "off"),
        ],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "HOSTLER_SCHEMA_SEED": str(SEED), "HOSTLER_SCHEMA_TALLY": str(tally)},
        capture_output=True,
        text=True,
        timeout=SECONDS + SLACK_SECONDS,
        check=False,
    )
    assert run.returncode == 0, f"seed {SEED}: {run.stdout}{run.stderr}"
    counts = json.loads(tally.read_text())
    assert counts["200"] > 0
    told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()) if status != "requests")
    record_property(f"in {SECONDS} s", f"{counts['requests']} requests ({told})")
    assert_sound(stack)


# credentials


def keys_by_scope(stack: Stack) -> dict[str, str]:
    """A key for each scope but admin, which includes all."""
    keys = {}
    for scope in ("inference", "endpoints", "metrics"):
        made = stack.client.post("/api/keys", json={"name": scope, "scopes": [scope]})
        assert made.status_code == 201, made.text
        keys[scope] = made.json()["key"]
    return keys


def test_every_operation_asks_for_a_key_and_for_the_scope_that_the_document_names(
    stack: Stack, routes: list[Route]
) -> None:
    """From the document, which a unit test holds to the router: a new route is in it or the test fails."""
    keys = keys_by_scope(stack)
    with httpx.Client(base_url=stack.address, timeout=CLIENT_SECONDS) as client:
        for route in routes:
            scope, path = route.told.get("x-hostler-scope"), route.sent_to()
            refusals = [client.request(route.method, path, headers=headers) for headers in ({}, bearer("hst_wrong"))]
            if scope is None:
                assert [answer.status_code for answer in refusals] == [200, 200], route
                continue
            for answer in refusals:
                assert answer.status_code == 401, (route, answer.text)
                assert answer.headers["www-authenticate"].startswith("Bearer")
            for other, key in keys.items():
                if other != scope:
                    answer = client.request(route.method, path, headers=bearer(key))
                    assert answer.status_code == 403, (route, other, answer.text)
                    assert f"'{scope}'" in answer.json()["error"]["message"] or scope in answer.text
            if scope in keys and path != "/api/events":
                answer = client.request(route.method, path, headers=bearer(keys[scope]))
                assert answer.status_code not in {401, 403}, (route, answer.text)


def test_a_head_needs_the_same_key_and_gets_the_head_of_the_answer(stack: Stack, routes: list[Route]) -> None:
    with httpx.Client(base_url=stack.address, timeout=CLIENT_SECONDS) as client:
        for route in routes:
            if route.method != "GET" or route.path.startswith("/v1/responses"):
                continue
            needed = 401 if "x-hostler-scope" in route.told else 200
            assert client.head(route.sent_to()).status_code == needed, route
            # on one connection: a stream ends with its head, else the next request would wait for ever
            answer = client.head(route.sent_to(name="spare", model="spare"), headers=bearer(ADMIN_KEY))
            assert answer.status_code == (404 if NOBODY in str(answer.url) else 200), route
            assert answer.content == b""


# what engines have and Hostler has not

VLLM = [
    tuple(line.split())
    for line in (REPOSITORY / "tests/data/vllm_routes.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
MANAGERS_OWN = {"/health", "/v1/models", "/metrics", "/version", "/v1/completions", "/v1/chat/completions"}
"""What the worker manager, and the readiness of a worker, ask an engine for."""


def test_every_route_of_vllm_is_404_unless_it_is_one_of_ours(
    stack: Stack, routes: list[Route], document: dict[str, Any]
) -> None:
    ours = {(route.method, route.path) for route in routes}
    shut = [(method, path) for method, path in VLLM if (method, path) not in ours]
    assert len(shut) > 50
    for method, path in shut:
        answer = stack.client.request(method, path, json={"model": GROUND} if method == "POST" else None)
        # POST /v1/responses/render is, for us, a method that no response takes
        expected = 405 if path in document["paths"] or path == "/v1/responses/render" else 404
        assert answer.status_code == expected, (method, path, answer.text)
    assert_engine_saw_only_ours(stack, routes)


PATHS_AROUND = [
    "//sleep",
    "/sleep/",
    "/./sleep",
    "/%73leep",
    "/v1/../sleep",
    "/v1/chat/completions/../../../sleep",
    "/v1/chat/completions/..%2f..%2f..%2fsleep",
    "/v1/chat/completions%2f..%2f..%2f..%2fsleep",
    "/v1/chat/completions/sleep",
    "/v1/chat/completions;/sleep",
    "/v1/chat/completions%3f/sleep",
    "/v1/chat/completions%00/sleep",
    "/v1/responses/../../sleep",
    "/v1/responses/..%2f..%2fsleep",
    "/v1/responses/resp_1%2f..%2f..%2f..%2fsleep",
    "/v1/responses/resp_1/cancel/../../../../sleep",
    "/v1/responses/resp_1%20HTTP/1.1%0d%0ahost:%20e%0d%0a%0d%0aPOST%20/sleep",
    "/tokenize/../sleep",
    "/tokenize%20HTTP/1.1%0d%0a%0d%0aPOST%20/sleep",
    "/SLEEP",
    "/v1/Chat/Completions",
    "http://engine/sleep",
    "http://engine/v1/load_lora_adapter",
    "*",
]


@pytest.mark.parametrize("target", PATHS_AROUND)
def test_no_spelling_of_a_path_reaches_another_route_of_an_engine(
    stack: Stack, routes: list[Route], target: str
) -> None:
    body = json.dumps(chat(GROUND)).encode()
    lines = (f"POST {target} HTTP/1.1", "host: h", f"authorization: Bearer {ADMIN_KEY}", f"content-length: {len(body)}")
    head = "\r\n".join((*lines, "", ""))
    with RawConnection(stack.port, CLIENT_SECONDS) as raw:
        raw.send(head.encode() + body)
        answer = raw.answer()
    assert answer.status in {400, 404, 405}, answer
    assert set(answer.json()) == {"error"}
    assert_engine_saw_only_ours(stack, routes)


def assert_engine_saw_only_ours(stack: Stack, routes: list[Route]) -> None:
    """No engine was asked for anything but what is forwarded and what the manager asks for."""
    forwarded = {route.path for route in routes if re.match(FORWARDED, route.path)}
    allowed = forwarded | MANAGERS_OWN | {path.removeprefix("/v1") for path in forwarded} | {"/simulator/stats"}
    (worker,) = [one["id"] for one in stack.status(GROUND)["workers"]]
    assert set(stack.engine_stats(worker)["paths"]) <= allowed


# strange values, one in each place that takes any

DEEP = "[" * 5000 + "]" * 5000
STRANGE = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e308",
    "1e999",
    "-0.0",
    "NaN",
    "Infinity",
    str(2**31),
    str(2**63),
    "9" * 400,
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"\\u202e\\ufffe"',
    '"' + "a" * 200_000 + '"',
    '"../../etc/passwd"',
    "[]",
    "{}",
    "[null]",
    '{"": ""}',
    '{"a": 1, "a": 2}',
    DEEP,
]
MODELS_OWN = {"name": '"spare"', "model": f'"local/{GROUND}"'}


def fields_of(document: dict[str, Any], route: Route) -> dict[str, Any]:
    """Properties of the route's body."""
    content = route.told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = content.get("$ref", "").rpartition("/")[2]
    properties: dict[str, Any] = (document["components"]["schemas"][name] if name else content).get("properties", {})
    return properties


def test_no_value_of_any_field_is_too_strange(stack: Stack, routes: list[Route], document: dict[str, Any]) -> None:
    """Each field of each body takes each of these in turn: never a status that the document does not have."""
    key_id = stack.client.post("/api/keys", json={"name": "strange"}).json()["id"]
    for route in routes:
        path = route.sent_to(name="spare", key_id=key_id)
        for field in fields_of(document, route):
            others = {name: value for name, value in MODELS_OWN.items() if name != field and route.method == "POST"}
            if not route.path.startswith("/api"):
                others = {"model": f'"{GROUND}"', "messages": "[]"}
            for value in STRANGE:
                pairs = ", ".join(f'"{name}": {text}' for name, text in {**others, field: value}.items())
                answer = stack.client.request(route.method, path, content=f"{{{pairs}}}".encode())
                assert str(answer.status_code) in route.told["responses"], (route[:2], field, value[:50], answer.text)
                assert answer.status_code < 500, (route[:2], field, value[:50], answer.text)
                if answer.status_code == 201:
                    made = answer.json()
                    is_key = route.path.startswith("/api/keys")
                    stack.client.delete(f"/api/keys/{made['id']}" if is_key else f"/api/endpoints/{made['name']}")
    assert_sound(stack)


QUERIES = ("", "%00", "%ff", "%ed%a0%80", "-1", "0", "1e5", "9" * 40, "nan", "a" * 5000, "..%2f..", "%0d%0ax: y", "[]")


def test_no_value_of_any_parameter_is_too_strange(stack: Stack, routes: list[Route]) -> None:
    for route in routes:
        for parameter in route.told["parameters"]:
            for value in QUERIES:
                if parameter["in"] == "query" and route.path != "/api/events":
                    paths = [f"{route.sent_to()}?{parameter['name']}={value}"]
                    paths += [f"{paths[0]}&{parameter['name']}={value}", f"{paths[0]}&nothing=1"]
                elif parameter["in"] == "path" and value:
                    paths = [route.path.replace(f"{{{parameter['name']}}}", value).replace("{", "").replace("}", "")]
                else:
                    continue
                for path in paths:
                    answer = stack.client.request(route.method, path)
                    assert answer.status_code < 500, (route.method, path, answer.text)
                    assert answer.headers["x-request-id"]
    assert_sound(stack)

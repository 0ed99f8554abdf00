"""What schemathesis loads into its own process beside the document.

It is sent to things that exist and kept from breaking its own ground; every answer is looked at for what a schema can't
say. Figures go to the file HOSTLER_SCHEMA_TALLY at the end.
"""

import atexit
import collections
import contextlib
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import schemathesis

GROUND = "tiny"
"""The endpoint that serves all the time."""
KEPT = (GROUND, "spare")
CHANGING = ("DELETE", "PATCH", "POST")
MADE_AT_MOST = 8
"""Endpoints and keys that are remembered, to be asked about, changed, and deleted."""
WORKERS = 2
TRUTHFUL = frozenset({"no_worker", "endpoint_failed"})
"""Codes of a 503 that this traffic brings about itself: engine flags no engine starts with, a wait of no second."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*)*")
MODEL = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")

chance = random.Random(os.environ.get("HOSTLER_SCHEMA_SEED", "0"))  # noqa: S311 - choices of a test, from its seed
tally: collections.Counter[str] = collections.Counter()
made: dict[str, list[str]] = {"name": [], "key_id": []}
POOLS = {"name": "name", "model": "name", "key_id": "key_id"}
"""Parameter of a path to what is known of its kind."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001 - schemathesis calls it so
    """Point some valid names at what exists, and bound what an order would start; what is invalid stays as it is."""
    for parameter, pool in POOLS.items():
        given = (case.path_parameters or {}).get(parameter)
        if isinstance(given, str) and NAME.fullmatch(given) and made[pool] and chance.random() < 0.6:
            case.path_parameters[parameter] = chance.choice(made[pool])
    if (case.path_parameters or {}).get("name") in KEPT and case.method.upper() in CHANGING:
        case.path_parameters["name"] = "nobody"
    if case.path == "/api/events":
        case.query = {"after": "none-0", **(case.query or {})}  # which is told something at once, and is let go then
    if isinstance(case.body, dict):
        tame(case.path, case.body)


def tame(path: str, body: dict[str, Any]) -> None:
    """Mostly models that are here, and few workers."""
    model = body.get("model")
    is_text = isinstance(model, str) and chance.random() < 0.8
    if path.startswith("/api/endpoints"):
        if is_text and MODEL.fullmatch(str(model)):
            body["model"], body["revision"] = f"local/{GROUND}", None
        for field, most in (("min_workers", 0), ("max_workers", WORKERS)):
            value = body.get(field)
            if isinstance(value, int) and not isinstance(value, bool) and most < value <= 64:
                body[field] = most
    elif is_text and model and not path.startswith("/api"):
        body["model"] = GROUND


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:  # noqa: ARG001
    """Count, and remember what was made."""
    tally["requests"] += 1
    tally[str(response.status_code)] += 1
    pool, field = {"/api/endpoints": ("name", "name"), "/api/keys": ("key_id", "id")}.get(case.path, ("", ""))
    if pool and response.status_code == 201 and case.method.upper() == "POST":
        made[pool].append(response.json()[field])
        del made[pool][:-MADE_AT_MOST]


@schemathesis.check
def every_answer_is_one_of_the_house(ctx: Any, response: Any, case: Any) -> None:  # noqa: ARG001
    """An id on each; on errors the one shape, what their status asks for, and no status that would be a bug."""
    headers = {name.lower(): values[0] for name, values in response.headers.items()}
    assert headers.get("x-request-id"), "no x-request-id"
    status = response.status_code
    if status < 400 or response.request.method == "HEAD" or "x-hostler-worker" in headers:
        assert status < 500, f"the engine failed: {response.content!r}"
        return
    assert headers["content-type"].startswith("application/json"), headers["content-type"]
    body = response.json()
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert len(error["message"]) > 10, error
    assert "Traceback" not in error["message"], error
    asked = {401: "www-authenticate", 405: "allow", 429: "retry-after", 503: "retry-after"}.get(status)
    assert asked is None or headers[asked], headers
    assert status < 500 or (status == 503 and error["code"] in TRUTHFUL), f"{status} {error}"


def leave_tally() -> None:
    """Write the figures where the one who started this looks for them."""
    with contextlib.suppress(KeyError):
        Path(os.environ["HOSTLER_SCHEMA_TALLY"]).write_text(json.dumps(tally, sort_keys=True))


atexit.register(leave_tally)

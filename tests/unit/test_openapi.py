"""The OpenAPI document: the same operations as the router's, whole, and in OpenAPI's own form."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from litestar.handlers import HTTPRouteHandler
from litestar.utils.path import join_paths

from gateway.app import CONTROLLERS
from gateway.errors import GatewayError
from gateway.openapi.document import ALL, document
from gateway.openapi.inference import FORWARDED
from gateway.openapi.operations import ROUTED
from gateway.proxy.paths import INFERENCE_ROUTES
from tests.unit.test_errors import tree

DOCUMENT = json.loads(document())
KINDED = re.compile(r"{(\w+):\w+}")
RESPONSES = {("GET", "/v1/responses/{response_id}"), ("POST", "/v1/responses/{response_id}/cancel")}


def routed() -> Iterator[tuple[str, str]]:
    """Method and path of every handler, as Litestar is given them."""
    for controller in CONTROLLERS:
        for handler in vars(controller).values():
            if isinstance(handler, HTTPRouteHandler):
                for path in handler.paths:
                    whole = join_paths([vars(controller).get("path", ""), path])
                    yield from ((str(method), KINDED.sub(r"{\1}", whole)) for method in handler.http_methods)


def references(part: Any) -> Iterator[str]:
    """Every `$ref` in it."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for one in part:
            yield from references(one)


def test_every_route_is_in_the_document_and_every_operation_has_a_route() -> None:
    assert {(one.method, generic(one.routed)) for one in ROUTED} == {
        (method, generic(path)) for method, path in routed()
    }


def generic(path: str) -> str:
    """A path without what its parameters are called."""
    return re.sub(r"{\w+}", "{}", path)


def test_every_forwarded_route_is_in_the_document_and_nothing_else_is_forwarded() -> None:
    assert {(one.method, one.path) for one in FORWARDED} == {("POST", path) for path in INFERENCE_ROUTES} | RESPONSES


def test_no_operation_stands_twice() -> None:
    names = [(one.method, one.path) for one in ALL]
    assert len(names) == len(set(names)) == sum(len(methods) for methods in DOCUMENT["paths"].values())


def test_everything_that_the_document_refers_to_is_there() -> None:
    for reference in set(references(DOCUMENT)):
        found = DOCUMENT
        for word in reference.removeprefix("#/").split("/"):
            assert word in found, reference
            found = found[word]


def test_patterns_are_those_of_json_schema() -> None:
    assert "\\\\Z" not in json.dumps(DOCUMENT)


def test_a_change_of_some_fields_has_none_that_must_be_there() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name, whole in (("EndpointChange", "EndpointSpec"), ("KeyChange", "KeySpec")):
        assert schemas[name]["properties"].keys() == schemas[whole]["properties"].keys()
        assert schemas[name]["required"] == []
        assert not [field for field, schema in schemas[name]["properties"].items() if "default" in schema]


def test_the_codes_of_errors_are_those_of_the_tree() -> None:
    codes = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert set(codes) == {kind.code for kind in tree(GatewayError)} - {"client_gone"}


@pytest.mark.parametrize("one", ALL, ids=lambda one: f"{one.method} {one.path}")
def test_what_needs_a_key_says_so_and_how_it_is_refused(one: Any) -> None:
    told = DOCUMENT["paths"][one.path][one.method.lower()]
    assert bool(told["security"]) == (one.scope is not None) == ("401" in told["responses"])
    assert ("403" in told["responses"]) == (one.scope is not None)
    assert ("500" in told["responses"]) == one.is_inference

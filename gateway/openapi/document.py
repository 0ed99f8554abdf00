"""The document itself, put together of operations. Pure."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway import __version__
from gateway.endpoints.types import NAME_MAX, NAME_PATTERN
from gateway.errors import ClientGone, GatewayError
from gateway.machine.health import NotReady
from gateway.openapi.inference import FORWARDED
from gateway.openapi.operation import EVENTS, JSON, Operation, Partial, Schema, Shape, text, thing, whole
from gateway.openapi.operations import ROUTED
from worker_manager.engine_flags import ENGINE_FLAGS

REF = "#/components/schemas/{name}"
ALL = (*ROUTED, *FORWARDED)

ALWAYS = (400, 408, 431)
"""What is not HTTP, or does not come whole, or has too large a header."""
SIGNED_IN = (401, 403, 429, 503)
"""503: the database, the issuer, the manager; or the gateway is being stopped."""
WITH_BODY = (413,)
BY_ENGINES = (404, 500, 502, 504)
"""500 only in an engine's own words: the gateway's own is a bug of ours, and no part of any promise."""

HEADERS = {"x-request-id": {"schema": {"type": "string"}, "required": True}}
WORDS = {
    400: "The request can't be understood, or asks for what can't be",
    401: "No key, or one that is not known",
    403: "A known key without the scope",
    404: "There is no such thing",
    408: "The request was begun and not finished in time",
    409: "It collides with what is there",
    413: "The body is over the limit",
    429: "A limit, a budget, or too many failed sign-ins",
    431: "The header is over the limit",
    500: "The engine failed, in its own words",
    502: "The engine died or broke off before the first byte",
    503: "What it needs is not there now",
    504: "The engine did not begin its answer in time",
}
NAME = text(pattern=NAME_PATTERN) | {"maxLength": NAME_MAX}
PATH_PARAMETERS: dict[str, Schema] = {"name": NAME, "adapter": NAME, "model": NAME}
KINDS: dict[str, Schema] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
}


def document(operations: Iterable[Operation] = ALL) -> bytes:
    """The OpenAPI document as JSON. Takes some 20 ms."""
    paths: dict[str, Any] = {}
    operations = tuple(operations)
    schemas = Schemas(operations)
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    whole_document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Hostler",
            "version": __version__,
            "description": "Answers of 500 with `internal_error` are bugs and no part of this document.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "responses": {
                _refusal(status, is_inference=inference): _refused(status, is_inference=inference)
                for status in WORDS
                for inference in (False, True)
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "basic": {"type": "http", "scheme": "basic", "description": "The key is the user name"},
            },
        },
    }
    return msgspec.json.encode(whole_document)


class Schemas:
    """The schemas of all structs that operations name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        shapes = [shape for one in operations for shape in (one.body, one.answer) if shape is not None]
        self._partial = {shape.name: shape.of for shape in shapes if isinstance(shape, Partial)}
        types = [shape for shape in shapes if not isinstance(shape, dict | Partial)] + list(self._partial.values())
        self._types = list(dict.fromkeys(types))
        found, self._components = msgspec.json.schema_components(self._types, ref_template=REF)
        self._found = dict(zip(self._types, found, strict=True))

    def schema(self, shape: Shape) -> Schema:
        """What a body or an answer looks like."""
        if isinstance(shape, dict):
            return shape
        if isinstance(shape, Partial):
            return {"$ref": REF.format(name=shape.name)}
        schema: Schema = self._found[shape]
        return schema

    def components(self) -> dict[str, Schema]:
        """By name; those of the changes and of the error among them."""
        found = {name: _portable(schema) for name, schema in self._components.items()}
        for name, struct in self._partial.items():
            fields = found[struct.__name__]
            properties = {
                field: {word: value for word, value in schema.items() if word != "default"}
                for field, schema in fields["properties"].items()
            }
            found[name] = fields | {"title": name, "required": [], "properties": properties}
        flags = {
            "type": "object",
            "properties": {name: KINDS[kind] for name, kind in ENGINE_FLAGS.items()},
            "additionalProperties": False,
        }
        for name in ("EndpointSpec", "EndpointChange"):
            found[name]["properties"]["engine_args"] = flags
        return found | {"Error": _error(), "EngineError": {"type": "object", "description": "As engines word theirs"}}


def _portable(schema: Any) -> Any:
    r"""A schema without what Python alone understands, `\Z`, and without `uniqueItems`: what is there twice is once."""
    if isinstance(schema, dict):
        return {
            name: value.replace("\\Z", "$") if name == "pattern" and isinstance(value, str) else _portable(value)
            for name, value in schema.items()
            if name != "uniqueItems"
        }
    return [_portable(one) for one in schema] if isinstance(schema, list) else schema


def _error() -> Schema:
    kinds: list[type[GatewayError]] = [*_kinds(GatewayError), NotReady]
    codes = sorted({kind.code for kind in kinds if kind is not ClientGone})
    nothing: Schema = {"type": ["string", "null"]}
    inner = thing(message=text(), type=text(), param=nothing, code=text(enum=tuple(codes)))
    return thing(error=inner | {"additionalProperties": False}) | {"additionalProperties": False}


def _kinds(root: type[GatewayError]) -> Iterable[type[GatewayError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)


def _operation(one: Operation, schemas: Schemas) -> Schema:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _portable(PATH_PARAMETERS.get(name, text()))}
        for name in re.findall(r"{(\w+)}", one.path)
    ]
    parameters += [
        {"name": it.name, "in": it.place, "required": False, "schema": it.schema, "description": it.description}
        for it in one.parameters
    ]
    found: Schema = {
        "summary": one.summary,
        "operationId": re.sub(r"\W+", "_", f"{one.method.lower()}_{one.path}").strip("_"),
        "parameters": parameters,
        "responses": _responses(one, schemas),
        "security": [] if one.scope is None else [{"bearer": []}, {"apiKey": []}, {"basic": []}],
    }
    if one.scope is not None:
        found["description"] = f"Scope: {one.scope.value}."
        found["x-hostler-scope"] = one.scope.value
    if one.body is not None:
        schema = schemas.schema(one.body)
        found["requestBody"] = {"required": one.body_required, "content": {one.body_media: {"schema": schema}}}
    return found


def _responses(one: Operation, schemas: Schemas) -> Schema:
    good: Schema = {"description": one.summary, "headers": HEADERS}
    if one.status != 204:  # noqa: PLR2004 - no content
        good["content"] = {
            media: {"schema": schemas.schema(one.answer) if media == JSON else {} if media == EVENTS else text()}
            for media in one.media
        }
    responses = {str(one.status): good}
    for status in sorted(refused(one)):
        name = _refusal(status, is_inference=one.is_inference)
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return responses


def _refusal(status: int, *, is_inference: bool) -> str:
    return f"{'Inference' if is_inference else 'Refused'}{status}"


def _refused(status: int, *, is_inference: bool) -> Schema:
    ours, theirs = ({"$ref": REF.format(name=name)} for name in ("Error", "EngineError"))
    engines = theirs if status == 500 else {"anyOf": [ours, theirs]}  # noqa: PLR2004 - an engine's own words
    return {
        "description": WORDS[status],
        "headers": HEADERS | _more_headers(status),
        "content": {JSON: {"schema": engines if is_inference else ours}},
    }


def _more_headers(status: int) -> Schema:
    if status in {429, 503}:
        return {"retry-after": {"schema": whole(1), "description": "Seconds"}}
    if status == 401:  # noqa: PLR2004
        return {"www-authenticate": {"schema": text(), "required": True}}
    return {}


def refused(one: Operation) -> frozenset[int]:
    """Every status that an operation may refuse with."""
    statuses = {*ALWAYS, *one.refuses}
    if one.scope is not None:
        statuses.update(SIGNED_IN)
    if "{" in one.path:
        statuses.add(404)
    if one.body is not None:
        statuses.update(WITH_BODY)
    if one.is_inference:
        statuses.update(BY_ENGINES)
    return frozenset(statuses)

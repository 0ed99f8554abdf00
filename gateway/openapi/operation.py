"""An operation of the HTTP API, and the parts that several of them share. Pure."""

from typing import Any, NamedTuple

import msgspec

from gateway.types import Scope

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"
Schema = dict[str, Any]


class Parameter(NamedTuple):
    """One parameter in the query or the header; those in the path are found there."""

    name: str
    schema: Schema
    description: str
    place: str = "query"


class Partial(NamedTuple):
    """The body of a PATCH: some of the fields of a struct."""

    of: type[msgspec.Struct]
    name: str


Shape = Any
"""A type that msgspec knows, a `Partial`, or a JSON schema as a dict."""


class Operation(NamedTuple):
    """A method of a path: what it takes, what it answers when all is well, and how it refuses."""

    method: str
    path: str
    summary: str
    scope: Scope | None
    """None: it is open to everybody."""
    status: int = 200
    answer: Shape = None
    """None: no body."""
    media: tuple[str, ...] = (JSON,)
    """What the answer may be; only JSON has the schema of `answer`."""
    body: Shape = None
    body_required: bool = True
    body_media: str = JSON
    parameters: tuple[Parameter, ...] = ()
    refuses: tuple[int, ...] = ()
    """Statuses beside those that every operation of its kind may answer."""
    route: str = ""
    """The router's path, where one route of it serves several operations."""
    is_inference: bool = False
    """Whether an engine may answer, in its own words."""

    @property
    def routed(self) -> str:
        """The path under which the router knows it."""
        return self.route or self.path


def whole(least: int = 1, most: int | None = None) -> Schema:
    """The schema of a whole number."""
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def text(*, pattern: str = "", enum: tuple[str, ...] = ()) -> Schema:
    """The schema of a text."""
    rule: Schema = {"pattern": pattern} if pattern else {"enum": list(enum)} if enum else {}
    return {"type": "string"} | rule


def thing(**properties: Schema) -> Schema:
    """The schema of an object that has all of these and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def rows(items: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items}

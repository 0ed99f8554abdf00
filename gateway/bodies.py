"""JSON bodies as structs, and what to say of one that is not. Pure."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gateway.errors import BadRequest

T = TypeVar("T")
Json = Any
"""Bytes, or a msgspec.Raw: what a decoder takes."""


def decoded(decode: Callable[[Json], T], body: Json) -> T:
    """What this msgspec decoder makes of a body. Raises BadRequest with the field that does not fit."""
    try:
        return decode(body)
    except msgspec.ValidationError as problem:
        raise BadRequest(f"The body does not fit: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise BadRequest(f"The body is not JSON: {problem}") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply") from None


def built(value: Json) -> Any:
    """What a JSON value is as Python objects. Raises BadRequest: a view of a body has the form of JSON, and no more."""
    return decoded(msgspec.json.decode, value)

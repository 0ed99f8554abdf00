"""How deep a JSON body is, found without recursion, and without building what it holds. Pure."""

import re
from itertools import accumulate

import msgspec

from gateway.bodies import decoded
from gateway.errors import BadRequest

CONTAINERS = 100_000
"""Arrays and objects in one body: each costs an engine, and us, far more memory than its two bytes."""
OPENED_LIMIT = 1024 * 1024
"""Bytes of a body that is opened level by level; a larger one is counted through, which takes longer and no memory."""
OPENED, LONG = 3, 512
"""Objects down to this level, of so many bytes, are opened unseen: messages, whose text may be full of brackets."""
OBJECT, ARRAY = b"{["
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
STEPS = tuple((byte in b"[{") - (byte in b"]}") for byte in range(256))

open_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
open_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def check_nesting(body: bytes, limit: int) -> bool:
    """Raise BadRequest for a JSON body (one that a decoder has taken) that is nested deeper than so much.

    Returns whether it may hold more than one array. No more brackets than the limit can't be too deep: most bodies
    are done with that.
    """
    arrays = brackets_within(body, limit)
    if arrays is not None:
        return arrays > 1
    # each takes two bytes, so a short body need not be counted through
    few = len(body) <= 2 * CONTAINERS or body.count(b"{") + body.count(b"[") <= CONTAINERS
    opened = few and len(body) <= OPENED_LIMIT
    if _is_deep(body, limit) if opened else _counted(body) > limit:
        raise BadRequest(
            f"The body is nested too deeply: at most {limit} arrays and objects may stand in each other "
            "(HOSTLER_MAX_JSON_DEPTH)"
        )
    return True


def brackets_within(text: bytes, limit: int) -> int | None:
    """How many `[` there are; None where there are more than so many brackets.

    `find` looks for them with memchr, which `count` does not.
    """
    found, arrays = 0, 0
    for bracket in (b"{", b"["):
        arrays = 0
        at = text.find(bracket)
        while at >= 0:
            arrays += 1
            if found + arrays > limit:
                return None
            at = text.find(bracket, at + 1)
        found += arrays
    return arrays


def _is_deep(body: bytes, limit: int) -> bool:
    """Open what may be too deep, level by level; of a level only arrays and objects are looked at."""
    pending: list[tuple[bytes | msgspec.Raw, int]] = [(body.lstrip(), 1)]
    while pending:
        value, depth = pending.pop()
        if depth > limit:
            return True
        is_object = memoryview(value)[0] == OBJECT
        is_message = is_object and depth <= OPENED and len(value) > LONG
        if not is_message and brackets_within(bytes(value), limit - depth + 1) is not None:
            continue
        inner = decoded(open_object, value).values() if is_object else decoded(open_array, value)
        pending += [(one, depth + 1) for one in inner if memoryview(one)[0] in (OBJECT, ARRAY)]
    return False


def _counted(body: bytes) -> int:
    """The depth. Raises BadRequest for more arrays and objects than may be."""
    brackets = STRING.sub(b"", body).translate(None, NOT_BRACKETS)
    if len(brackets) > 2 * CONTAINERS:
        raise BadRequest(f"The body has more than {CONTAINERS} arrays and objects: send less in one request")
    return max(accumulate(map(STEPS.__getitem__, brackets)), default=0)

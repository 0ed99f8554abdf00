"""How deep a JSON body is, found without recursion, and without building what it holds. Pure."""

from itertools import accumulate

import msgspec

from gateway.bodies import decoded
from gateway.errors import BadRequest
from gateway.proxy.bulk import outside_texts

CONTAINERS = 100_000
"""Arrays and objects in one body: each costs an engine, and us, far more memory than its two bytes."""
OPENED_LIMIT = 1024 * 1024
"""Bytes of a body that is opened level by level; a larger one is counted through, which takes longer and no memory."""
OBJECT, ARRAY = b"{["
NOT_OPENING = bytes(set(range(256)) - set(b"[{"))
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
STEPS = tuple((byte in b"[{") - (byte in b"]}") for byte in range(256))

open_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
open_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def check_nesting(body: bytes, limit: int) -> bool:
    """Raise BadRequest for a JSON body (one that a decoder has taken) that is nested deeper than so much.

    Returns whether it may hold more than one array. No more brackets than the limit can't be too deep: most bodies
    are done with that.
    """
    opening = opening_brackets(body)
    if len(opening) <= limit:
        return opening.count(b"[") > 1
    opened = len(opening) <= CONTAINERS and len(body) <= OPENED_LIMIT
    if _is_deep(body, limit) if opened else _counted(body) > limit:
        raise BadRequest(
            f"The body is nested too deeply: at most {limit} arrays and objects may stand in each other "
            "(HOSTLER_MAX_JSON_DEPTH)"
        )
    return True


def opening_brackets(text: bytes) -> bytes:
    """Nothing but its brackets, those in strings too. Deleting goes through 3 bytes in a nanosecond."""
    return text.translate(None, NOT_OPENING)


def _is_deep(body: bytes, limit: int) -> bool:
    """Open what may be too deep, level by level; of a level only arrays and objects are looked at."""
    pending: list[tuple[bytes | msgspec.Raw, int]] = [(body.lstrip(), 1)]
    while pending:
        value, depth = pending.pop()
        if depth > limit:
            return True
        is_object = memoryview(value)[0] == OBJECT
        inner = decoded(open_object, value).values() if is_object else decoded(open_array, value)
        room = limit - depth  # for brackets in each other in what is one level deeper; each takes two bytes
        pending += [
            (one, depth + 1)
            for one in inner
            if len(one) > 2 * room
            and memoryview(one)[0] in (OBJECT, ARRAY)
            and len(opening_brackets(bytes(one))) > room
        ]
    return False


def _counted(body: bytes) -> int:
    """The depth. Raises BadRequest for more arrays and objects than may be."""
    brackets = outside_texts(body).translate(None, NOT_BRACKETS)
    if len(brackets) > 2 * CONTAINERS:
        raise BadRequest(f"The body has more than {CONTAINERS} arrays and objects: send less in one request")
    return max(accumulate(map(STEPS.__getitem__, brackets)), default=0)

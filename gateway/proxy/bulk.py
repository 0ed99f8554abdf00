"""What a large body may be made of, so that no step of reading it takes long. Pure.

The bodies that take long are not the large ones but those of millions of small values: 60 MB of one-letter texts were
3 s of the one thread, and 2 GB, for us; an engine that builds them all takes longer.
"""

from gateway.errors import BadRequest

LARGE = 1024 * 1024
"""Bytes of a body from which on it is looked through first, and read beside the event loop."""
TEXTS = 400_000
"""Texts in a body, names of fields among them: four for each array or object that there may be."""
VALUES = 4_000_000
"""Values in a body; in a list of tokens each is one."""
SLICE = 4 * 1024 * 1024
"""Bytes of a body that one step takes; other threads have their turn between two."""


def check_bulk(body: bytes) -> None:
    """Raise BadRequest for JSON of more texts or values than a request can need."""
    quotes = body.count(b'"')
    # each text has two that are not escaped; a backslash before the second may be an escaped one itself
    if quotes > 2 * TEXTS and quotes - body.count(b'\\"') > 2 * TEXTS:
        raise BadRequest(f"The body has more than {TEXTS} texts: send less in one request")
    if body.count(b",") >= VALUES and outside_texts(body).count(b",") >= VALUES:
        raise BadRequest(f"The body has more than {VALUES} values: send less in one request")


def outside_texts(body: bytes) -> bytes:
    """What is left of JSON without what stands between quotes."""
    return b"".join(unescaped(body).split(b'"')[::2])


def unescaped(body: bytes) -> bytes:
    """JSON without its escaped quotes and backslashes: each quote that is left begins or ends a text."""
    if b"\\" not in body:
        return body
    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        piece = body[at : at + SLICE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = piece[:-1]  # it belongs to what follows
        pieces.append(piece.replace(b"\\\\", b"").replace(b'\\"', b""))
        at += len(piece) or 1
    return b"".join(pieces)

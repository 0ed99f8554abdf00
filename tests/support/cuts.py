"""Bytes in arbitrary pieces: what arrives on a connection may have been cut anywhere."""

import itertools
from collections.abc import Iterable


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    """The same bytes in pieces, none empty; a place beyond the end counts from the beginning again."""
    edges = [0, *sorted({place % (len(raw) + 1) for place in places}), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(edges) if end > start]

"""Whether an engine still answers as it did: a fixed question, its answer before, its answer after. Pure.

Greedy answers of one process to one question are the same, but for a near tie that rounding decides. So the question is
put twice while the engine is known to be well, and what both answers share is what a later one must begin with.
"""

import math
from itertools import takewhile

import msgspec

from worker_manager.engines.questions import Answer

TEXT = "Count slowly: one, two, three, four, five. The capital of France is Paris, and the capital of Italy is"
TOKENS = 16
TOLERANCE = 0.05
"""Largest distance of two embeddings, as a part of the first one's length."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Two answers of a healthy engine, and the route that gave them."""

    route: str
    first: str | tuple[float, ...]
    second: str | tuple[float, ...]

    def is_usable(self) -> bool:
        """Whether the two have enough in common to tell a healthy engine from a broken one."""
        if isinstance(self.first, str) and isinstance(self.second, str):
            return bool(_shared(self.first, self.second).strip())
        return _near(self.first, self.second)

    def fits(self, later: Answer) -> bool:
        """Whether a later answer is that of the same model in the same state."""
        if isinstance(self.first, str) and isinstance(self.second, str):
            return isinstance(later, str) and later.startswith(_shared(self.first, self.second))
        return _near(self.first, later)


def _shared(one: str, other: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _near(one: Answer, other: Answer) -> bool:
    if isinstance(one, str) or isinstance(other, str) or len(one) != len(other):
        return False
    return math.dist(one, other) <= TOLERANCE * math.hypot(*one)

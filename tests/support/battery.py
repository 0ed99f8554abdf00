"""How large a test is: brief in CI, whole where `scripts/battery` asks for it, which also holds it to its times."""

import os
from collections.abc import Callable

Tell = Callable[[str, object], None]
"""pytest's `record_property`: tells the battery's table a figure."""
WHOLE = os.environ.get("HOSTLER_BATTERY") == "1"
"""Whether this is a run of the battery: every test at its full size, on a machine that has nothing else to do."""
LONGEST_SECONDS = 1200
"""For one test of the battery."""


def size(brief: int, whole: int) -> int:
    """How often, or how long: the first in CI, the second in the battery."""
    return whole if WHOLE else brief


def hold(found: float, goal: float, what: str) -> None:
    """Hold a time to its goal, in the battery alone: elsewhere the machine does other things meanwhile."""
    assert not WHOLE or found <= goal, f"{what}: {found:.3g}, goal {goal:g}"


def milliseconds(seconds: float) -> str:
    """A time as the battery's table shows it."""
    return f"{seconds * 1000:.3g} ms"

"""What goes wrong with engines, and how long the manager lets each state last; seconds."""

import random

import msgspec

from worker_manager.contract import WorkerState

LOAD_DEADLINE = 120.0
SLEEP_DEADLINE = 60.0
WAKE_DEADLINE = 60.0
BACKOFF = 10.0
BACKOFF_MAX = 80.0
DEATHS_LIMIT = 5

DEADLINES = {
    WorkerState.LOADING: LOAD_DEADLINE,
    WorkerState.SLEEPING: SLEEP_DEADLINE,
    WorkerState.WAKING: WAKE_DEADLINE,
    WorkerState.BACKOFF: BACKOFF_MAX,
}
"""Those that the simulated manager enforces itself; the others follow from what the planner asks for."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How likely each fault is, each time."""

    load_dies: float = 0.1
    load_hangs: float = 0.05
    sleep_fails: float = 0.15
    sleep_ignored: float = 0.05
    """The manager takes the order and never begins."""
    wake_fails: float = 0.15


NONE = Faults(load_dies=0, load_hangs=0, sleep_fails=0, sleep_ignored=0, wake_fails=0)


class Fate:
    """Decides what happens, from a seed."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._chance = random.Random(f"fate {seed}")  # noqa: S311 - a simulation, no secret

    def load(self, seconds: float) -> tuple[float, bool]:
        """How long a load lasts, and whether it ends well."""
        draw = self._chance.random()
        if draw < self._faults.load_hangs:
            return LOAD_DEADLINE, False
        dies = draw < self._faults.load_hangs + self._faults.load_dies
        return (seconds * self._chance.random(), False) if dies else (seconds, True)

    def sleep(self, seconds: float) -> tuple[float, bool]:
        """How long falling asleep lasts, and whether it ends well."""
        fails = self._chance.random() < self._faults.sleep_fails
        return (min(SLEEP_DEADLINE, seconds + 5), False) if fails else (seconds, True)

    def wake(self, seconds: float) -> tuple[float, bool]:
        """How long waking lasts, and whether it ends well."""
        fails = self._chance.random() < self._faults.wake_fails
        return (self._chance.choice([seconds, WAKE_DEADLINE]), False) if fails else (seconds, True)

    def ignores_sleep(self) -> bool:
        """Whether this order to sleep comes to nothing."""
        return self._chance.random() < self._faults.sleep_ignored

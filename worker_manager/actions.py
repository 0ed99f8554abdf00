"""What may follow from a look at the workers: the words in which the pure rules speak to the supervisor."""

import msgspec

from worker_manager.contract import Failure, Residency, WorkerSpec
from worker_manager.launchers.base import Unit


class Adopt(msgspec.Struct, frozen=True):
    """A unit exists that is not tracked, or tracked as not started: track it as LOADING (or as dead)."""

    id: str
    spec: WorkerSpec
    running: bool
    length: int | None = None
    """The context length that its engine was started with instead of the spec's."""


class Track(msgspec.Struct, frozen=True):
    """A worker is desired and nothing of it exists: track it as WAITING, its past forgotten."""

    id: str
    spec: WorkerSpec


class Start(msgspec.Struct, frozen=True):
    """Create and start the unit."""

    id: str
    spec: WorkerSpec


class Wait(msgspec.Struct, frozen=True):
    """Stay WAITING (or go there), for this reason."""

    id: str
    reason: str


class Stop(msgspec.Struct, frozen=True):
    """Stop and remove the unit, then forget the worker."""

    id: str
    reason: str


class Collect(msgspec.Struct, frozen=True):
    """The worker died, or is given up: keep its log, diagnose it unless `failure` says why, remove the unit."""

    id: str
    failure: Failure | None = None
    unit: Unit | None = None
    """As found; None where it has vanished with its log."""


class Sleep(msgspec.Struct, frozen=True):
    """Let the engine sleep at this level; the worker is READY and drained."""

    id: str
    level: Residency


class Wake(msgspec.Struct, frozen=True):
    """Wake the engine; the memory it takes back is free."""

    id: str


class Hold(msgspec.Struct, frozen=True):
    """Stay as it is, for this reason; `blocked`: it should wake and can't yet."""

    id: str
    reason: str
    blocked: bool = False


class GiveUp(msgspec.Struct, frozen=True):
    """To FAILED, without a unit to remove."""

    id: str
    failure: Failure


class Forget(msgspec.Struct, frozen=True):
    """Nothing of it exists and nobody wants it: stop tracking it."""

    id: str


Action = Adopt | Track | Start | Wait | Stop | Collect | Sleep | Wake | Hold | GiveUp | Forget

"""Why a worker could not start, or died: what is known already, else what the launcher and the log say."""

import time

import msgspec

from worker_manager.actions import Collect
from worker_manager.contract import Failure, FailureKind
from worker_manager.deadlines import CREATING_SECONDS
from worker_manager.engines.canary import Verdict
from worker_manager.engines.diagnosis import TAIL_LINES, diagnose
from worker_manager.launchers.base import ImageMissingError, LauncherError

HINTS = {
    FailureKind.HUNG: "it is ended and started anew; if it comes back, take another engine image",
    FailureKind.UNREACHABLE: "it is ended and started anew; if it comes back, see whether the machine is overloaded",
    FailureKind.SLEEP_FAILED: "it is started anew and does not sleep again; take another engine image to try it there",
    FailureKind.WAKE_FAILED: "it is started anew and does not sleep again; take another engine image to try it there",
}


def of_death(action: Collect, lines: tuple[str, ...], *, was_ready: bool, now: float) -> Failure:
    """Why the worker died."""
    if action.failure is not None:
        return msgspec.structs.replace(action.failure, log_tail=action.failure.log_tail or lines[-TAIL_LINES:])
    exit_code, out_of_memory = (action.unit.exit_code, action.unit.out_of_memory) if action.unit else (None, False)
    return diagnose(exit_code=exit_code, out_of_memory=out_of_memory, lines=lines, was_ready=was_ready, now=now)


def of_stillbirth(lines: tuple[str, ...], now: float) -> Failure:
    """Why an engine that has given up its load and did not end is ended."""
    return diagnose(exit_code=None, out_of_memory=False, lines=lines, was_ready=False, now=now)


def of_launch(error: LauncherError | OSError) -> Failure:
    """Why the launcher could not start it, or did not in its time."""
    if isinstance(error, TimeoutError):
        message = f"it was not made within {CREATING_SECONDS:g} s"
        hint = "see whether Docker and the disk of the models folder answer"
        return Failure(kind=FailureKind.LAUNCH_FAILED, message=message, hint=hint, at=time.time())
    kind, hint = FailureKind.LAUNCH_FAILED, "see the manager's log"
    if isinstance(error, ImageMissingError):
        kind, hint = FailureKind.IMAGE_MISSING, "bring the engine's image or program to this machine (docker pull)"
    elif "could not select device driver" in str(error):
        kind, hint = FailureKind.DRIVER_MISMATCH, "install nvidia-container-toolkit and restart Docker"
    return Failure(kind=kind, message=str(error), hint=hint, at=time.time())


def of_verdict(verdict: Verdict) -> Failure:
    """Why an engine that runs is replaced."""
    return Failure(kind=verdict.kind, message=verdict.message, hint=HINTS[verdict.kind], at=time.time())

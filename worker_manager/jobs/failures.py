"""Why a download ended without its model, each with words for the operator.

DownloadError          kind unknown
+-- ModelGatedError         kind model_gated: the hub wants a token that may read it
+-- ModelMissingError       kind model_missing: no such repository, revision, or nothing in it to serve
+-- HubOfflineError         kind offline: no name, no route, no answer
+-- DiskFullError           kind disk_full
+-- CancelledError          kind cancelled: asked to stop; what was fetched stays for the next run
"""

import errno
from typing import ClassVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HTTP_UNAUTHORIZED, HTTP_FORBIDDEN, HTTP_TOO_MANY = 401, 403, 429


class DownloadError(Exception):
    """A download can't go on; `hint` says what to do about it."""

    kind: ClassVar[str] = "unknown"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ModelGatedError(DownloadError):
    """The repository exists, and this caller may not read it."""

    kind = "model_gated"


class ModelMissingError(DownloadError):
    """No such repository or revision, or nothing in it that an engine could load."""

    kind = "model_missing"


class HubOfflineError(DownloadError):
    """The hub did not answer."""

    kind = "offline"


class DiskFullError(DownloadError):
    """The model does not fit beside the reserve."""

    kind = "disk_full"


class CancelledError(DownloadError):
    """Somebody asked this run to stop."""

    kind = "cancelled"


def diagnose(error: Exception, model: str, revision: str) -> DownloadError:
    """Turn whatever the hub client or the operating system raised into one of ours."""
    if isinstance(error, DownloadError):
        return error
    if isinstance(error, (HfHubHTTPError, HFValidationError)):
        return _hub_answer(error, model, revision)
    if isinstance(error, (OfflineModeIsEnabled, httpx2.TransportError)):
        return _offline(error)
    if isinstance(error, OSError):
        return _disk_error(error)
    return DownloadError(f"{type(error).__name__}: {error}", "The job's log has the details.")


def _hub_answer(error: HfHubHTTPError | HFValidationError, model: str, revision: str) -> DownloadError:
    page = f"{constants.ENDPOINT}/{model}"
    match error:
        case GatedRepoError():
            hint = f"Accept the model's terms at {page}, and set HF_TOKEN to a token of that account."
            return ModelGatedError(f"{model} is gated: the hub gives it only to accounts that accepted its terms", hint)
        case RevisionNotFoundError():
            return ModelMissingError(f"{model} has no revision {revision!r}", f"See its branches and tags at {page}.")
        case RepositoryNotFoundError():
            hint = "Check the spelling; for a private model, set HF_TOKEN to a token that may read it."
            return ModelMissingError(f"the hub knows no model {model}", hint)
        case HFValidationError():
            return ModelMissingError(f"{model!r} is not a model's name", "Write ORGANISATION/NAME as on the hub.")
        case DisabledRepoError():
            return ModelMissingError(f"the hub has disabled {model}", f"See {page}.")
    return _hub_status(error.response.status_code, model)


def _hub_status(status: int, model: str) -> DownloadError:
    if status in (HTTP_UNAUTHORIZED, HTTP_FORBIDDEN):
        hint = "Set HF_TOKEN to a valid token that may read this model, or unset it for a public one."
        return ModelGatedError(f"the hub refused access to {model} (status {status})", hint)
    if status == HTTP_TOO_MANY:
        return DownloadError("the hub asks for fewer requests (status 429)", "Try again in some minutes.")
    return DownloadError(f"the hub answered with status {status}", "Try again later; what was fetched is kept.")


def _offline(error: Exception) -> HubOfflineError:
    if isinstance(error, OfflineModeIsEnabled):
        hint = "Unset HF_HUB_OFFLINE, or copy the model by hand."
        return HubOfflineError("HF_HUB_OFFLINE forbids to ask the hub", hint)
    hint = (
        "Check this machine's network, its proxy, and HF_ENDPOINT. Without any network, copy the model to "
        "local/NAME below the models folder. What was fetched is kept."
    )
    return HubOfflineError(f"the hub at {constants.ENDPOINT} can't be reached: {error or type(error).__name__}", hint)


def _disk_error(error: OSError) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("the disk of the models folder ran full", "Free some space and start the download again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Give the models folder to the user this job runs as, and mount it writable."
        return DownloadError(f"the models folder can't be written: {error.strerror}", hint)
    return DownloadError(f"{type(error).__name__}: {error}", "The job's log has the details.")

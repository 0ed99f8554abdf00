"""What a path inside the manager's container is called on the host, where Docker Engine looks for bind sources."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from worker_manager.launchers.base import LauncherError

HOSTNAME = Path("/etc/hostname")
MOUNTINFO = Path("/proc/self/mountinfo")
CONTAINER_ID = re.compile(r"/containers/([0-9a-f]{64})/")
SHORT_ID = re.compile(r"^[0-9a-f]{12,64}$")


class OwnMount(msgspec.Struct, frozen=True):
    """One mount of the manager's own container."""

    destination: str
    source: str


def own_ids() -> list[str]:
    """What may be this container's id, the surest first."""
    return candidate_ids(_read(HOSTNAME), _read(MOUNTINFO))


def candidate_ids(hostname: str, mountinfo: str) -> list[str]:
    """Ids from the mounts that Docker makes for each container, then the host name, which a user may have set."""
    found = CONTAINER_ID.findall(mountinfo)
    if SHORT_ID.match(hostname.strip()):
        found.append(hostname.strip())
    return list(dict.fromkeys(found))


def own_mounts(inspected: dict[str, Any]) -> tuple[OwnMount, ...]:
    """The mounts of an inspected container that have a place on the host."""
    mounts = inspected.get("Mounts") or ()
    return tuple(OwnMount(mount["Destination"], mount["Source"]) for mount in mounts if mount.get("Source"))


def on_host(path: str, mounts: Iterable[OwnMount]) -> str:
    """The host's name of a path in this container. Raises `LauncherError` where the path is on no mount."""
    inside = PurePosixPath(path)
    fitting = [mount for mount in mounts if inside.is_relative_to(mount.destination)]
    if not fitting:
        raise LauncherError(f"{path} is no mount of the manager's container; mount a volume or a folder there")
    best = max(fitting, key=lambda mount: len(PurePosixPath(mount.destination).parts))
    return str(PurePosixPath(best.source) / inside.relative_to(best.destination))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

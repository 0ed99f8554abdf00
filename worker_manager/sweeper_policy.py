"""The container that deletes what an engine has locked: a body within the same boundary as `policy`. Pure."""

from typing import Any

from worker_manager import policy

SWEEPER_PIDS = 16
SWEEPER_MEMORY_BYTES = 256 * policy.MIB
INSIDE = "/sweep"


def sweeper_body(folder: str, image: str, user: str) -> dict[str, Any]:
    """The body of a sweeper's container: one folder of the host's, and the engines' own user; gone when it ends."""
    limits = {
        "AutoRemove": True,
        "Memory": SWEEPER_MEMORY_BYTES,
        "MemorySwap": SWEEPER_MEMORY_BYTES,
        "PidsLimit": SWEEPER_PIDS,
        "NetworkMode": "none",
    }
    return {
        "Image": image,
        "Entrypoint": ["python"],
        "Cmd": ["-m", "worker_manager.jobs.sweep", INSIDE],
        "User": user,
        "WorkingDir": "/tmp",  # noqa: S108 - a path inside the container
        "Env": [],
        "NetworkDisabled": True,
        "StopTimeout": 5,
        "HostConfig": policy.host_config([policy.bind_mount(folder, INSIDE, read_only=False)]) | limits,
    }

"""The container that reads a model's weights into the page cache: a body within the same boundary as `policy`. Pure."""

from typing import Any

import msgspec

from worker_manager import policy

READER_PIDS = 32
READER_CPU_SHARES = 128
"""An eighth of what others have: it makes way for engines that serve."""


class ReaderContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the reader of a model's weights gets; paths are the host's own."""

    instance: str
    image: str
    models_on_host: str
    uid: int
    gid: int
    memory_bytes: int
    """What it reads is charged to it, so it may have as much as an engine."""


def reader_words(folder: str, reserve_mib: int) -> tuple[str, ...]:
    """The words after `python` that read the weights in a folder, as the reader sees it, into the page cache."""
    return ("-m", "worker_manager.jobs.read_ahead", f"--folder={folder}", f"--reserve-mib={reserve_mib}")


def reader_body(
    reader_id: str, model: str, context: ReaderContext, *, resolved: str | None, reserve_mib: int
) -> dict[str, Any]:
    """The body of a reader's container: one model's folder, read-only, and nothing else. Raises `PolicyRefusal`."""
    inside = f"{policy.MODELS_IN_ENGINE}/{model}"
    mount = policy.bind_mount(
        f"{context.models_on_host}/{policy.check_resolved(model, resolved)}", inside, read_only=True
    )
    limits = {
        "Memory": context.memory_bytes,
        "MemorySwap": context.memory_bytes,
        "PidsLimit": READER_PIDS,
        "CpuShares": READER_CPU_SHARES,
        "NetworkMode": "none",
    }
    return {
        "Image": context.image,
        "Entrypoint": ["python"],
        "Cmd": list(reader_words(inside, reserve_mib)),
        "User": f"{context.uid}:{context.gid}",
        "WorkingDir": "/tmp",  # noqa: S108 - a path inside the container
        "Labels": {
            policy.LABEL_INSTANCE: context.instance,
            policy.LABEL_KIND: "reader",
            policy.LABEL_ID: reader_id,
            policy.LABEL_SPEC: model,
        },
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",
        "StopTimeout": 5,
        "HostConfig": policy.host_config([mount]) | limits,
    }

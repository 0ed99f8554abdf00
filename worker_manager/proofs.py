"""What must outlive the manager about engines that sleep: how they answered before, and what was under way.

One small file a worker, beside the manager's socket, where engines can't reach. It is a memory aid and nothing more:
one that is lost or can't be read costs a worker its sleep, never its service.
"""

import asyncio
from pathlib import Path
from typing import Literal

import msgspec

from worker_manager.contract import Residency
from worker_manager.engines.fingerprint import Fingerprint
from worker_manager.files import replace_file


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one engine, which is told from a later one of the same id by `created_at`."""

    created_at: float
    version: str
    fingerprint: Fingerprint
    pending: Literal["", "sleep", "wake"] = ""
    """Begun and not proven yet."""
    level: Residency = Residency.HOT
    hot_mib: dict[str, int] = {}
    """What it held on each card before it slept."""
    by_card: bool = False
    """That is what everybody held there together: NVML told no processes."""


class Proofs:
    """The files below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, worker: str, created_at: float) -> Proof | None:
        """The proof of this very engine, if there is one that can be read."""
        try:
            text = await asyncio.to_thread(self._path(worker).read_bytes)
            found = msgspec.json.decode(text, type=Proof)
        except (OSError, msgspec.DecodeError):
            return None
        return found if found.created_at == created_at else None

    async def write(self, worker: str, proof: Proof) -> None:
        """Whole or not at all. Raises OSError."""
        await asyncio.to_thread(self._write, worker, msgspec.json.encode(proof))

    def remove(self, worker: str) -> None:
        """Forget it; one that is not there is no error."""
        self._path(worker).unlink(missing_ok=True)

    def _write(self, worker: str, text: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o770)
        replace_file(self._path(worker), text)

    def _path(self, worker: str) -> Path:
        return self._folder / f"{worker}.json"

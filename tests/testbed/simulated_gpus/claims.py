"""The folder behind a simulated GPU host: cards in `host.json`, held memory in `claims/`.

A process that holds GPU memory keeps `claims/NAME.json` = {"uuid", "memory_mib", "pid"} and an exclusive flock on it
as long as it lives, so that memory comes back however it dies. A claim that nobody locks is dead, unless its time of
change lies in the future: until then the memory is not given back (`linger`), as drivers are seen to do. Checking and
claiming is one step, under a flock on `host.json`. The stub libnvidia-ml.so.1 reads the same folder.
"""

import contextlib
import fcntl
import json
import os
import time
import uuid as uuids
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CONTAINER_FOLDER = Path("/dev/hostler-simulated-gpus")
"""Where the hook stand-in mounts the folder in a container."""
HOST_PID_FILE = Path("/dev/hostler-host-pid")
"""Where the hook stand-in writes the host's pid of the container's first process, which NVML would report."""
HOST_FILE = "host.json"
CLAIMS = "claims"
CLAIM_BYTES = 256
"""A claim is padded to this size and written in one call: a reader never sees half of a change."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One simulated GPU."""

    index: int
    uuid: str
    name: str
    memory_total_mib: int
    energy_mj: int | None = 1_000_000
    """What its counter shows, millijoules; None: it has none, as cards before Volta."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Memory that a process holds on one card; `pid` as the host sees it, where that is known."""

    uuid: str
    memory_mib: float
    pid: int


class HeldClaim:
    """A claim of this process; ends with it, or with `release`."""

    def __init__(self, folder: Path, uuid: str, memory_mib: float) -> None:
        self.uuid = uuid
        self.memory_mib = memory_mib
        self._path = folder / CLAIMS / f"{uuids.uuid4().hex}.json"
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        os.fchmod(self._file, 0o644)  # whatever the umask: readers run as other users
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.resize(memory_mib)

    def resize(self, memory_mib: float) -> None:
        """Hold this much from now on; growing is checked by the caller, under `locked`."""
        self.memory_mib = memory_mib
        text = json.dumps({"uuid": self.uuid, "memory_mib": round(memory_mib, 1), "pid": host_pid()})
        os.pwrite(self._file, text.ljust(CLAIM_BYTES).encode(), 0)

    def release(self) -> None:
        """Give the memory back."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._file)


def host_pid() -> int:
    """Find this process's pid as the host sees it: in a container, that of its first process, told by the hook."""
    try:
        return int(HOST_PID_FILE.read_text())
    except (OSError, ValueError):
        return os.getpid()


def find_folder(environment: Mapping[str, str]) -> Path | None:
    """Find the simulated host's folder; None on a machine (or in a container) that has none."""
    named = environment.get("HOSTLER_SIMULATED_GPUS")
    folder = Path(named) if named else CONTAINER_FOLDER
    return folder if (folder / HOST_FILE).is_file() else None


def visible_cards(folder: Path, environment: Mapping[str, str]) -> list[Card]:
    """Give the cards that CUDA would show this process, in the order it asked for them."""
    cards = read_cards(folder)
    asked = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("NVIDIA_VISIBLE_DEVICES") or ""
    if asked in {"", "none", "void"}:
        return []
    if asked == "all":
        return cards
    by_name = {name: card for card in cards for name in (card.uuid, str(card.index))}
    return [by_name[name.strip()] for name in asked.split(",") if name.strip() in by_name]


def read_cards(folder: Path) -> list[Card]:
    """Read the cards of `host.json`."""
    found = json.loads((folder / HOST_FILE).read_text())["cards"]
    return [Card(**{"energy_mj": None, **card}) for card in found]


def live_claims(folder: Path) -> list[Claim]:
    """List what processes hold now, and what `host.json` says that other programs hold."""
    foreign = json.loads((folder / HOST_FILE).read_text()).get("foreign", [])
    claims = [Claim(**use) for use in foreign]
    for path in sorted((folder / CLAIMS).glob("*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError), path.open() as file:
            if _is_held(file.fileno()):
                claims.append(Claim(**json.loads(file.read())))
    return claims


def linger(folder: Path, pid: int, until: float) -> None:
    """Let the memory of a process stay in use until a Unix time, even if the process ends before."""
    for path in (folder / CLAIMS).glob("*.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if json.loads(path.read_text())["pid"] == pid:
                os.utime(path, (until, until))


def used_mib(folder: Path, uuid: str) -> float:
    """Sum up what is held on one card, MiB."""
    return sum(claim.memory_mib for claim in live_claims(folder) if claim.uuid == uuid)


def remove_dead_claims(folder: Path) -> None:
    """Tidy up after processes that died; files of other users stay where the sticky bit guards them."""
    for path in (folder / CLAIMS).glob("*.json"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            with path.open() as file:
                dead = not _is_held(file.fileno())
            if dead:
                path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the host's lock: nobody else claims memory or changes `host.json` meanwhile."""
    path = folder / HOST_FILE
    while True:
        file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_ino != path.stat().st_ino:
                continue  # replaced while we waited: the lock that counts is on the new file
            yield
            return
        finally:
            os.close(file)


def _is_held(file: int) -> bool:
    if os.fstat(file).st_mtime > time.time():
        return True
    try:
        # shared, so that two readers don't take each other for the holder
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False

"""Make a simulated GPU host: a folder with cards and claims, and the stub libnvidia-ml.so.1 that reads it."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.testbed.simulated_gpus.claims import CLAIMS, HOST_FILE, Card, Claim, HeldClaim, linger, live_claims, locked

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"
COMPILE_SECONDS = 60
FAILING = "failing"
"""While there is such a file, NVML fails."""
SYSTEM_FOLDER = Path("/var/lib/hostler-simulated-gpus")
"""Where the hook stand-in looks: the host that containers see. Making it needs root."""


class SimulatedHost:
    """A folder that plays a machine with GPUs.

    `env` leads a process to it; containers find `SYSTEM_FOLDER` by way of the hook stand-in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, cards: Sequence[Card]) -> "SimulatedHost":
        """Make the folder and build the library in it; what an earlier host left there is replaced."""
        host = cls(folder)
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.chmod(0o755)
        claims = folder / CLAIMS
        shutil.rmtree(claims, ignore_errors=True)
        claims.mkdir()
        claims.chmod(0o1777)  # engines of any user claim; none removes another's claim
        host._write({"cards": [_as_json(card) for card in cards], "foreign": []})
        build_library(folder)
        return host

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to find the cards and the library."""
        return {"HOSTLER_SIMULATED_GPUS": str(self.folder), "LD_LIBRARY_PATH": str(self.folder)}

    def add_foreign(self, uuid: str, memory_mib: int, pid: int = 4_000_000) -> None:
        """Have another program, not one of ours, hold memory on a card."""
        with locked(self.folder):
            host = json.loads((self.folder / HOST_FILE).read_text())
            host["foreign"].append({"uuid": uuid, "memory_mib": memory_mib, "pid": pid})
            self._write(host)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """NVML is there and fails."""
        file = self.folder / FAILING
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def clear_foreign(self) -> None:
        """Have the other programs end."""
        with locked(self.folder):
            host = json.loads((self.folder / HOST_FILE).read_text())
            self._write({**host, "foreign": []})

    def spend(self, uuid: str, energy_mj: int) -> int:
        """Have a card use so much energy, millijoules; what its counter shows then."""
        with locked(self.folder):
            host = json.loads((self.folder / HOST_FILE).read_text())
            card = next(card for card in host["cards"] if card["uuid"] == uuid)
            card["energy_mj"] += energy_mj
            self._write(host)
        return int(card["energy_mj"])

    def hold(self, uuid: str, memory_mib: float) -> HeldClaim:
        """Claim memory for the calling process, until it releases the claim or ends."""
        return HeldClaim(self.folder, uuid, memory_mib)

    def linger(self, pid: int, until: float) -> None:
        """Have the memory of a process stay in use until a Unix time, even if the process ends before."""
        linger(self.folder, pid, until)

    def live_claims(self) -> list[Claim]:
        """Who holds memory now, the foreign programs included."""
        return live_claims(self.folder)

    def used_mib(self, uuid: str) -> float:
        """How much of a card is held, MiB."""
        return sum(claim.memory_mib for claim in self.live_claims() if claim.uuid == uuid)

    def remove(self) -> None:
        """Take the machine away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, host: object) -> None:
        path = self.folder / HOST_FILE
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(host, indent=2))
        temporary.chmod(0o644)
        temporary.rename(path)


def cards(count: int, memory_total_mib: int = 24_576, name: str = "NVIDIA Simulated 24GB") -> list[Card]:
    """Make some cards of one kind; their UUIDs have the form of NVIDIA's and tell the index."""
    return [
        Card(
            index=index, uuid=f"GPU-51a70000-0000-4000-8000-{index:012d}", name=name, memory_total_mib=memory_total_mib
        )
        for index in range(count)
    ]


def build_library(folder: Path) -> Path:
    """Compile the stub NVML into a folder, unless the one there is newer than its source; needs gcc."""
    library = folder / LIBRARY
    if library.is_file() and library.stat().st_mtime >= SOURCE.stat().st_mtime:
        return library
    temporary = folder / f".{LIBRARY}.{os.getpid()}"
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-format-truncation",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
    ]
    soname = f"-Wl,-soname,{LIBRARY}"
    subprocess.run([*command, soname, "-o", str(temporary), str(SOURCE)], check=True, timeout=COMPILE_SECONDS)
    temporary.chmod(0o755)
    temporary.rename(library)
    return library


def _as_json(card: Card) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(card).items() if value is not None}

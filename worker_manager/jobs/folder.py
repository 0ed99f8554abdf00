"""Where a hub model lies below the models folder, and how it gets there whole or not at all.

hub/ORG/NAME/COMMIT/           a finished model; appears by one rename
hub/ORG/NAME/refs/REVISION     the commit, as text; written last, so it says "present"
hub/ORG/NAME/.incoming/COMMIT/ what is being fetched: finished files, and FILE.partial
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker_manager.files import replace_file, sync_names
from worker_manager.jobs.failures import CancelledError, DownloadError
from worker_manager.jobs.selection import HubFile

COMMIT = re.compile(r"^[0-9a-f]{7,64}$")
PARTIAL_SUFFIX = ".partial"
LOCK_POLL_SECONDS = 0.2


class ModelFolder:
    """One commit of one repository on the disk. Whoever changes it holds `lock`."""

    def __init__(self, models: Path, model: str, revision: str, commit: str) -> None:
        if not COMMIT.match(commit):
            raise DownloadError(f"the hub names a commit that is none: {commit!r}", "Check HF_ENDPOINT.")
        organisation, name = model.split("/")
        self.relative = f"hub/{organisation}/{name}/{commit}"
        self._repository = models / "hub" / organisation / name
        self._final = models / self.relative
        self._incoming = self._repository / ".incoming" / commit
        self._reference = self._repository / "refs" / revision.replace("/", "--")
        self._commit = commit

    def incoming(self, file: HubFile) -> Path:
        """Where this file lies once it is whole, until the model is."""
        return self._incoming / file.path

    def missing(self, files: Iterable[HubFile]) -> tuple[HubFile, ...]:
        """The files that are not there yet, or not whole."""
        place = self._final if self._final.is_dir() else self._incoming
        return tuple(file for file in files if _size(place / file.path) != file.size)

    def bytes_to_fetch(self, files: Iterable[HubFile]) -> int:
        """Bytes of the missing files that no earlier run has left here."""
        return sum(file.size - min(file.size, self.partial_size(file)) for file in self.missing(files))

    def partial_size(self, file: HubFile) -> int:
        """Bytes that an earlier run left of a file."""
        return _size(partial(self.incoming(file))) or 0

    @contextmanager
    def lock(self, stop: threading.Event) -> Iterator[None]:
        """Hold this repository; waits for another run that holds it. The kernel lets go when a run dies."""
        self._repository.mkdir(parents=True, exist_ok=True)
        # the folder itself is locked, so no lock file is left behind
        descriptor = os.open(self._repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not _try_lock(descriptor):
                if stop.wait(LOCK_POLL_SECONDS):
                    raise CancelledError("stopped while another download of this model was running")
            yield
        finally:
            os.close(descriptor)

    def open_for_repair(self, files: Iterable[HubFile]) -> None:
        """Make ready to fetch. A finished model that lost files since is taken back, so nobody is offered half."""
        if self._final.is_dir() and self.missing(files):
            self._reference.unlink(missing_ok=True)
            shutil.rmtree(self._incoming, ignore_errors=True)
            self._incoming.parent.mkdir(exist_ok=True)
            self._final.replace(self._incoming)

    def publish(self) -> None:
        """Make the model visible under its commit and write the reference; what other runs left over goes away."""
        if not self._final.is_dir():
            for folder in (self._incoming, *(path for path in self._incoming.rglob("*") if path.is_dir())):
                sync_names(folder)
            self._incoming.replace(self._final)
        shutil.rmtree(self._incoming.parent, ignore_errors=True)
        self._reference.parent.mkdir(exist_ok=True)
        replace_file(self._reference, f"{self._commit}\n".encode())
        sync_names(self._repository)


def partial(path: Path) -> Path:
    """Where a file lies while it is not whole."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

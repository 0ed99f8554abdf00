"""Fetches one file of a repository: goes on where an earlier run stopped, and believes nothing but its hash.

huggingface_hub resolves names, finds the token and explains errors, but the bytes are fetched here: since 2.x its own
downloads start again from zero after a kill (each run writes to a file with a random name).
"""

import hashlib
import logging
import os
import threading
from pathlib import Path

import httpx2
from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not marked as re-exported

from worker_manager.jobs.failures import CancelledError, DownloadError
from worker_manager.jobs.folder import partial
from worker_manager.jobs.progress import Meter
from worker_manager.jobs.selection import HubFile

CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 30.0
TIMEOUT = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
RANGE_BYTES = 16 * 1024**3
"""Most bytes asked for at once: the hub's content network gives no answer longer than 50 GB."""
CHUNK_BYTES = 1024 * 1024
ATTEMPTS = 5
"""How often in a row an attempt may bring nothing before the file is given up."""
FIRST_PAUSE_SECONDS = 0.5
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE, TOO_MANY, SERVER_ERROR = 206, 416, 429, 500

logger = logging.getLogger(__name__)


class Fetcher:
    """Fetches the files of one commit; safe to use from several threads. Setting `stop` ends each at its next chunk."""

    def __init__(self, model: str, commit: str, meter: Meter, stop: threading.Event) -> None:
        self._model = model
        self._commit = commit
        self._meter = meter
        self._stop = stop
        self._headers: dict[str, str] = {**build_hf_headers(), "Accept-Encoding": "identity"}

    def fetch(self, file: HubFile, path: Path) -> None:
        """Bring a file to `path`, which appears whole and checked or not at all.

        Raises `DownloadError`, and what the hub client or the operating system raises.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = partial(path)
        resumed = self._cut_to_size(part, file.size) > 0
        self._fill(file, part)
        problem = mismatch(part, file)
        if problem and resumed:
            logger.warning("%s; the part that an earlier run left is thrown away", problem)
            self._discard(part)
            self._fill(file, part)
            problem = mismatch(part, file)
        if problem:
            self._discard(part)
            raise DownloadError(problem, "Start the download again; if it happens again, a proxy changes the bytes.")
        part.replace(path)

    def _fill(self, file: HubFile, part: Path) -> None:
        """Ask for what is missing until nothing is, with growing pauses while nothing comes."""
        with part.open("ab", buffering=0) as out:
            failures = 0
            while (have := out.tell()) < file.size:
                try:
                    self._append(file, out.fileno(), have)
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    failures = 1 if os.fstat(out.fileno()).st_size > have else failures + 1
                    self._pause_or_raise(error, failures, file)
                out.seek(0, os.SEEK_END)
            os.fsync(out.fileno())

    def _append(self, file: HubFile, out: int, have: int) -> None:
        end = min(file.size, have + RANGE_BYTES)
        headers = dict(self._headers)
        if have or end < file.size:
            headers["Range"] = f"bytes={have}-{end - 1}"
        url = hf_hub_url(self._model, file.path, revision=self._commit)
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as answer:
            if answer.is_error:
                answer.read()
            hf_raise_for_status(answer)
            if have and answer.status_code != PARTIAL_CONTENT:
                self._rewind(out, have)
            room = end - have if answer.status_code == PARTIAL_CONTENT else file.size
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                self._check_stop()
                if len(chunk) > room:
                    raise DownloadError(f"the hub sends more of {file.path} than it has listed", "Try again later.")
                room -= len(chunk)
                _write_all(out, chunk)
                self._meter.add(len(chunk))

    def _rewind(self, out: int, have: int) -> None:
        """The server ignored the range and starts from the first byte."""
        os.ftruncate(out, 0)
        self._meter.add(-have)

    def _pause_or_raise(self, error: Exception, failures: int, file: HubFile) -> None:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        passing = status is None or status == TOO_MANY or status >= SERVER_ERROR
        if not passing or failures >= ATTEMPTS:
            raise error
        logger.warning("%s broke off (%s: %s); asking for the rest", file.path, type(error).__name__, error)
        self._stop.wait(FIRST_PAUSE_SECONDS * 2 ** (failures - 1))
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise CancelledError("the download was stopped")

    def _cut_to_size(self, part: Path, size: int) -> int:
        """Bytes of the file that are there already; none if there are more than the file has."""
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            return 0
        return have

    def _discard(self, part: Path) -> None:
        self._meter.add(-part.stat().st_size)
        part.unlink()


def mismatch(path: Path, file: HubFile) -> str | None:
    """What is wrong with a file that should be whole, as a sentence; None if size and hash are as listed."""
    size = path.stat().st_size
    if size != file.size:
        return f"{file.path} has {size} bytes instead of {file.size}"
    if file.sha256 is not None:
        found, listed = _hash(path, hashlib.sha256()), file.sha256
    elif file.git_sha1 is not None:
        # git's own name of the content; the only hash that the hub gives for small files
        found, listed = _hash(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)), file.git_sha1
    else:
        return None
    return None if found == listed else f"{file.path} arrived damaged: its hash is {found} instead of {listed}"


def _hash(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write_all(out: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(out, view) :]

"""Brings a model from the hub into the models folder; run in a container or process of its own.

Prints JSON lines on stdout, its log on stderr:

    {"event": "resolved", "commit": COMMIT, "bytes_total": N}
    {"event": "progress", "bytes_done": N, "bytes_total": N}       at most each half second
    {"event": "done", "path": "hub/ORG/NAME/COMMIT", "bytes_done": N}
    {"event": "failed", "kind": KIND, "message": SENTENCE, "hint": SENTENCE}

KIND is model_gated, model_missing, offline, disk_full, cancelled or unknown. Exit status 0 after "done", 1 after
"failed". What was fetched stays after a failure, a TERM or a kill, and the next run goes on from there.
"""

import argparse
import logging
import os
import re
import signal
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec
from huggingface_hub import HfApi

from worker_manager.jobs.disk import GIB, check_room, free_bytes
from worker_manager.jobs.failures import CancelledError, DownloadError, ModelMissingError, diagnose
from worker_manager.jobs.fetch import Fetcher
from worker_manager.jobs.folder import ModelFolder
from worker_manager.jobs.progress import INTERVAL_SECONDS, Meter, tell
from worker_manager.jobs.selection import HubFile, choose

HUB_ANSWER_SECONDS = 30.0
FILES_AT_ONCE = 4
STOP_SECONDS = 2.0
"""How long files in flight may take to notice that they should stop; a write in progress is all they lose."""
WORLD_READABLE = 0o022
"""umask: engines read the weights as another user."""
MODEL = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$")
REVISION = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}$")

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

logger = logging.getLogger("worker_manager.jobs.download")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to fetch and where to; `reserve` are bytes that stay free on the disk."""

    model: str
    revision: str
    models: Path
    reserve: int


def resolve(order: Order) -> tuple[str, tuple[HubFile, ...]]:
    """The commit that the revision stands for now, and the files of it that an engine needs."""
    info = HfApi().model_info(order.model, revision=order.revision, files_metadata=True, timeout=HUB_ANSWER_SECONDS)
    if info.sha is None:
        raise DownloadError("the hub names no commit", "Check HF_ENDPOINT.")
    files: list[HubFile] = []
    for sibling in info.siblings or ():
        if sibling.size is None:
            raise DownloadError(f"the hub names no size for {sibling.rfilename}", "Check HF_ENDPOINT.")
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        git_sha1 = sibling.blob_id if sha256 is None else None
        files.append(HubFile(path=sibling.rfilename, size=sibling.size, sha256=sha256, git_sha1=git_sha1))
    return info.sha, choose(files)


def download(order: Order, stop: threading.Event) -> None:
    """Do all of it and tell "done". Raises `DownloadError`, and what the hub client or the disk raises."""
    commit, files = resolve(order)
    folder = ModelFolder(order.models, order.model, order.revision, commit)
    total = sum(file.size for file in files)
    tell("resolved", commit=commit, bytes_total=total)
    _check_disk(order, folder, files)
    with folder.lock(stop):
        folder.open_for_repair(files)
        # again: another run may have filled the disk, or fetched all of it, while this one waited
        _check_disk(order, folder, files)
        meter = Meter(total - folder.bytes_to_fetch(files), total)
        meter.tell()
        _fetch_all(Fetcher(order.model, commit, meter, stop), folder, files, meter, stop)
        folder.publish()
    tell("done", path=folder.relative, bytes_done=meter.bytes_done)


def _check_disk(order: Order, folder: ModelFolder, files: tuple[HubFile, ...]) -> None:
    check_room(wanted=folder.bytes_to_fetch(files), free=free_bytes(order.models), reserve=order.reserve)


def _fetch_all(
    fetcher: Fetcher, folder: ModelFolder, files: tuple[HubFile, ...], meter: Meter, stop: threading.Event
) -> None:
    """Several files at once; the first failure stops all of them and is raised."""
    pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="fetch")
    pending: set[Future[None]] = {
        pool.submit(fetcher.fetch, file, folder.incoming(file)) for file in folder.missing(files)
    }
    try:
        while pending:
            done, pending = wait(pending, timeout=INTERVAL_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            meter.tell()
    except BaseException:
        stop.set()
        wait(pending, timeout=STOP_SECONDS)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def parse_arguments(arguments: list[str] | None = None) -> Order:
    """The command line; a name or revision that no hub would have is a usage error."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m worker_manager.jobs.download",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="ORG/NAME", help="repository on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (main)")
    parser.add_argument("--models", required=True, type=Path, metavar="FOLDER", help="the models folder")
    parser.add_argument("--reserve-gib", type=float, default=5.0, metavar="GIB", help="disk to leave free (5)")
    given = parser.parse_args(arguments)
    reserve = int(given.reserve_gib * GIB)
    return Order(model=given.model, revision=given.revision, models=given.models.absolute(), reserve=reserve)


def check_order(order: Order) -> None:
    """Refuse names that would lead out of the models folder; the hub knows none of them anyway."""
    if not MODEL.match(order.model):
        raise ModelMissingError(f"{order.model!r} is not a model's name", "Write ORGANISATION/NAME as on the hub.")
    if not REVISION.match(order.revision):
        raise ModelMissingError(f"{order.revision!r} is not a revision", "Name a branch, a tag or a commit.")


def run(order: Order) -> int:
    """Download, tell how it ended, and return the exit status. TERM and INT stop it cleanly."""
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop.set()
        raise CancelledError("the download was stopped", "Start it again to go on where it stopped.")

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    try:
        check_order(order)
        download(order, stop)
    except Exception as error:  # noqa: BLE001 - the task's root: whatever it was, the manager must hear of it
        _tell_failure(order, error)
        return 1
    return 0


def _tell_failure(order: Order, error: Exception) -> None:
    failure = diagnose(error, order.model, order.revision)
    # a traceback helps only where the words don't
    cause = error if failure.kind == DownloadError.kind else None
    logger.error("%s at %s: %s (%s)", order.model, order.revision, failure, failure.kind, exc_info=cause)
    tell("failed", kind=failure.kind, message=str(failure), hint=failure.hint)


def main() -> NoReturn:
    """Run and leave at once: a thread that still waits for the hub must not hold the process."""
    order = parse_arguments()
    # warnings and worse: a line for each request would push the events out of a log's tail
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=LOG_FORMAT)
    os.umask(WORLD_READABLE)
    status = run(order)
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()

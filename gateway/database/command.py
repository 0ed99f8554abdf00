"""Backup and restore of a data folder that no gateway uses. Prints JSON, or one sentence and exit status 1."""

import argparse
import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from gateway.database.backup import Backup, NoRoomError, back_up
from gateway.database.claim import FolderInUseError, claimed
from gateway.database.connection import FILE_NAME
from gateway.database.restore import Restored, fold, restore
from gateway.database.sound import UnsoundError
from gateway.database.trouble import trouble_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    given = _parser().parse_args(arguments)
    os.umask(0o007)
    try:
        done = _backup(given) if given.command == "backup" else _restore(given)
    except UnsoundError as problem:
        what = "The backup" if given.command == "backup" else str(given.file)
        _fail(f"{what} can't be used: {problem}. Nothing was changed")
    except (NoRoomError, FolderInUseError) as problem:
        _fail(f"No {given.command}: {problem}")
    except sqlite3.Error as problem:
        trouble = trouble_of(problem)
        _fail(f"{trouble.sentence()} ({problem})" if trouble else f"No {given.command}: {problem}")
    except OSError as problem:
        _fail(f"No {given.command}: {problem.strerror} ({problem.filename})")
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway.database", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    backup = commands.add_parser("backup", help="make a backup")
    backup.add_argument("data", type=Path, help="the data folder")
    backup.add_argument("folder", type=Path, help="where backups lie")
    backup.add_argument("--keep", type=int, default=7, metavar="N", help="backups to keep (7)")
    put_back = commands.add_parser("restore", help="put a backup in the place of the database")
    put_back.add_argument("file", type=Path, help="the backup; - for standard input")
    put_back.add_argument("data", type=Path, help="the data folder")
    return parser


def _backup(given: argparse.Namespace) -> Backup:
    source = given.data / FILE_NAME
    if not source.exists():
        raise FileNotFoundError(2, "there is no database", str(source))
    with contextlib.suppress(FolderInUseError), claimed(given.data):
        fold(source)  # with a gateway at work it would be wrong, and is not needed
    return back_up(source, given.folder, given.keep)


def _restore(given: argparse.Namespace) -> Restored:
    with claimed(given.data), _file(given.file, given.data) as file:
        return restore(file, given.data)


@contextlib.contextmanager
def _file(named: Path, folder: Path) -> Iterator[Path]:
    """The backup as a file: standard input is written into one first."""
    if str(named) != "-":
        yield named
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".hostler-restore-") as held:
        shutil.copyfileobj(sys.stdin.buffer, held)
        held.flush()
        yield Path(held.name)


def _fail(sentence: str) -> None:
    sys.stderr.write(f"{sentence}.\n")
    sys.exit(1)

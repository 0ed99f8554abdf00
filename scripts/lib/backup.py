"""Make a backup of the database: endpoints, keys, usage. Hostler may run meanwhile, or be stopped.

The backup lies in HOSTLER_BACKUPS (or --to), checked, and the oldest beyond HOSTLER_BACKUPS_KEPT go. With --age it is
encrypted with the command `age` for a recipient: then whoever has the file has nothing without the identity's key.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib import address, dotenv, state
from lib.console import Problem, say, step

CREATED = 201
NAME = re.compile(r"hostler-\d{8}T\d{6}\.\d{6}Z\.db(\.age)?")
AGE_SECONDS = 600
PRIVATE = 0o600


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/backup", description=__doc__, epilog="scripts/restore puts one back."
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where it shall lie, another disk at best")
    parser.add_argument("--keep", type=int, metavar="N", help="how many are kept there (HOSTLER_BACKUPS_KEPT)")
    parser.add_argument(
        "--age",
        metavar="RECIPIENT",
        help="encrypt it for this recipient (age1…, an SSH public key, or a file of them); HOSTLER_BACKUP_RECIPIENT",
    )
    parser.add_argument("--no-docker", action="store_true", help="take the data folder here even where there is Docker")
    return parser.parse_args(words)


def make(where: state.Place, keep: int) -> dict[str, Any]:
    """What the gateway says of the backup it made; where none runs, the same of one made without it."""
    if state.gateway_answers():
        status, body = address.call("POST", "/api/backup", seconds=state.LONG_SECONDS)
        if status == CREATED:
            return dict(body)
        raise Problem(f"the gateway made no backup ({status}): {address.message(body)}")
    say("   the gateway does not run: the file is read as it lies there")
    if where is state.Place.FOLDER:
        if not (state.data_folder() / state.DATABASE).exists():
            raise Problem(f"there is no database in {state.data_folder()} (HOSTLER_DATA): nothing to back up")
        words = (str(state.data_folder()), str(state.backups_folder()))
    else:
        words = (state.CONTAINER_DATA, state.CONTAINER_BACKUPS)
    return state.tool(where, "backup", *words, "--keep", str(keep))


def bring(where: state.Place, made: dict[str, Any], target: Path) -> None:
    """Lay the backup down as `target`, whole or not at all. Raises Problem where it is not what was made."""
    source = state.backups_folder() / made["name"]
    with _part(target) as part:
        if where is state.Place.VOLUME:
            state.fetch(made["name"], part)
        elif source.exists():
            shutil.copyfile(source, part)
        else:
            raise Problem(
                f"the gateway made {made['name']} in its own HOSTLER_BACKUPS, which is not {source.parent}: "
                "it is there, and nothing was copied"
            )
        with part.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != made["sha256"]:
                raise Problem("the copy is not what the gateway made: is the disk well?")


def encrypt(source: Path, target: Path, recipient: str) -> None:
    """`source` as an age file for a recipient. Raises Problem."""
    who = ["-R", recipient] if Path(recipient).is_file() else ["-r", recipient]
    with _part(target) as part:
        run_age([*who, "-o", str(part), str(source)], "encrypting")


def run_age(words: list[str], what: str) -> None:
    """Run the command `age`; it may ask for a passphrase. Raises Problem."""
    try:
        done = subprocess.run(["age", *words], stderr=subprocess.PIPE, timeout=AGE_SECONDS, check=False)
    except FileNotFoundError:
        raise Problem(
            "the command age is not installed: apt install age, brew install age, or see age-encryption.org"
        ) from None
    except subprocess.TimeoutExpired:
        raise Problem(f"{what} took longer than {AGE_SECONDS} s and was stopped") from None
    if done.returncode != 0:
        raise Problem(f"{what} failed: {done.stderr.decode(errors='replace').strip().splitlines()[0]}")


def rotate(folder: Path, made: str, keep: int) -> int:
    """Delete the oldest backups beyond `keep`, never the one just made; how many are left."""
    others = sorted(file for file in folder.iterdir() if NAME.fullmatch(file.name) and file.name != made)
    surplus = max(len(others) - (keep - 1), 0)
    for file in others[:surplus]:
        file.unlink()
    return len(others) + 1 - surplus


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """A private file beside `target`, which gets that name at the end of the block; else it is removed."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def run(words: list[str]) -> int:
    """The whole of scripts/backup; its exit code."""
    options = parse(words)
    recipient = options.age or dotenv.settings().get("HOSTLER_BACKUP_RECIPIENT") or ""
    keep = options.keep or state.kept()
    folder = options.to.absolute() if options.to else state.backups_folder()
    if recipient and not shutil.which("age"):
        raise Problem("the command age is not installed: apt install age, brew install age, or see age-encryption.org")
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        where = state.place(no_docker=options.no_docker)
        with step("making a backup"):
            made = make(where, keep)
            final = deliver(where, made, folder, recipient)
    except OSError as problem:
        raise Problem(f"the backup could not be written: {problem.strerror} ({problem.filename})") from None
    left = rotate(folder, final.name, keep)
    size = final.stat().st_size / 1e6
    say(f"   {made['endpoints']} endpoints, {made['keys']} keys, schema {made['schema']}, sha256 {made['sha256']}")
    say(f"Backup: {final} ({size:.1f} MB in {made['seconds']} s; {left} kept)")
    if not recipient:
        say("It holds no key, only their hashes, and no prompt. Keep .env too: the admin key is in it.")
    return 0


def deliver(where: state.Place, made: dict[str, Any], folder: Path, recipient: str) -> Path:
    """Bring the backup to its folder, encrypted where it shall be; the file."""
    name = str(made["name"])
    plain, own = folder / name, state.backups_folder() / name
    if not recipient:
        if where is state.Place.VOLUME or plain != own:
            bring(where, made, plain)
        return plain
    final = folder / f"{name}.age"
    source = own
    if where is state.Place.VOLUME:
        source = plain
        bring(where, made, source)
    try:
        encrypt(source, final, recipient)
    finally:
        with contextlib.suppress(OSError):
            source.unlink()
        if where is state.Place.VOLUME:
            state.forget(name)
    return final

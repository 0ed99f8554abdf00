"""Put a backup in the place of the database, while Hostler is stopped. The old database is kept beside it.

The backup is checked first (whole, Hostler's, no newer than this version); whatever happens, the database is then the
old one or the new one. An older backup is brought up to date by the gateway's next start.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lib import compose, processes, state
from lib.backup import run_age
from lib.console import Problem, say, step


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="scripts/restore", description=__doc__)
    parser.add_argument(
        "file", type=Path, help="the backup, as scripts/backup made it: hostler-….db or hostler-….db.age"
    )
    parser.add_argument("--identity", type=Path, metavar="FILE", help="the age identity (secret key) that opens it")
    parser.add_argument("--no-docker", action="store_true", help="into the data folder here even where there is Docker")
    return parser.parse_args(words)


def refuse_while_running(where: state.Place) -> None:
    """Raise Problem while a gateway may write to the database."""
    if processes.alive("gateway") or (where is state.Place.VOLUME and compose.running()) or state.gateway_answers():
        raise Problem("the gateway runs: stop it first with scripts/down (models may stay in memory meanwhile)")


@contextlib.contextmanager
def opened(file: Path, identity: Path | None) -> Iterator[Path]:
    """The backup in clear, for the length of the block. Raises Problem."""
    if not file.is_file():
        raise Problem(f"{file} is not there, or is no file")
    if file.suffix != ".age":
        yield file
        return
    if identity is None:
        raise Problem(f"{file.name} is encrypted: name the identity that opens it with --identity FILE")
    with tempfile.TemporaryDirectory(prefix="hostler-restore-") as folder:  # its mode is 0700
        plain = Path(folder) / file.stem
        run_age(["-d", "-i", str(identity), "-o", str(plain), str(file)], "decrypting")
        yield plain


def run(words: list[str]) -> int:
    """The whole of scripts/restore; its exit code."""
    options = parse(words)
    where = state.place(no_docker=options.no_docker)
    refuse_while_running(where)
    with step(f"restoring {options.file}"), opened(options.file.absolute(), options.identity) as plain:
        if where is state.Place.FOLDER:
            done = state.tool(where, "restore", str(plain), str(state.data_folder()))
        else:
            with plain.open("rb") as stream:
                done = state.tool(where, "restore", "-", state.CONTAINER_DATA, stdin=stream)
    say(f"   {done['endpoints']} endpoints, {done['keys']} keys, schema {done['schema']}")
    if done["aside"]:
        say(f"   the old database is kept as {done['aside']} beside it; delete it when all is well")
    say("Restored. Start Hostler with scripts/up.")
    return 0

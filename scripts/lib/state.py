"""Where the database lies (a folder here, or a Docker volume), and the tools that read it where no gateway runs."""

import json
import os
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from lib import address, compose, dotenv, machine, processes, venv
from lib.console import ROOT, Problem, answer

DATABASE = "hostler.db"
LONG_SECONDS = 1800
"""For a backup or a restore of many GB."""
CONTAINER_DATA = "/data"
CONTAINER_BACKUPS = "/data/backups"
"""As compose.yaml has them."""
OK = 200


class Place(StrEnum):
    """Where a Hostler of this checkout keeps its data."""

    FOLDER = "folder"
    VOLUME = "Docker volume"


def data_folder() -> Path:
    """The data folder of plain processes."""
    return ROOT / (dotenv.settings().get("HOSTLER_DATA") or "data")


def backups_folder() -> Path:
    """Where backups lie on this machine."""
    return ROOT / (dotenv.settings().get("HOSTLER_BACKUPS") or "backups")


def kept() -> int:
    """How many backups are kept. Raises Problem where HOSTLER_BACKUPS_KEPT is no number above 0."""
    text = dotenv.settings().get("HOSTLER_BACKUPS_KEPT") or "7"
    if not text.isdigit() or int(text) < 1:
        raise Problem(f"HOSTLER_BACKUPS_KEPT={text} is no number of backups: write 1 or more")
    return int(text)


def place(*, no_docker: bool) -> Place:
    """Where the data is: what runs says it, else what is there. Raises Problem where that is not clear."""
    if no_docker or processes.any_alive() or machine.docker_trouble():
        return Place.FOLDER
    if compose.exists():
        return Place.VOLUME
    here = (data_folder() / DATABASE).exists()
    volume = answer(["docker", "volume", "inspect", "--format", "ok", f"{compose.instance()}_data"]) == "ok"
    if here and volume:
        raise Problem(
            f"there is a database in {data_folder()} and one in the Docker volume {compose.instance()}_data: "
            "say --no-docker for the folder, or start the one in Docker first (scripts/up)"
        )
    return Place.FOLDER if here else Place.VOLUME


def gateway_answers() -> bool:
    """Whether a gateway listens at the address of .env."""
    status, body = address.call("GET", "/livez", seconds=5)
    return status == OK and body == {"status": "ok"}


def tool(where: Place, *words: str, stdin: IO[bytes] | None = None) -> dict[str, Any]:
    """Run `python -m gateway.database` where the data is; what it answers. Raises Problem with what it says."""
    if where is Place.FOLDER:
        python = venv.ensure("gateway", "manager", instead=("dev",))
        command, env = [str(python), "-m", "gateway.database", *words], dict(os.environ, PYTHONPATH=str(ROOT))
    else:
        command = compose.command(*_run("python"), "gateway", "-m", "gateway.database", *words)
        env = compose.environment()
    try:
        done = subprocess.run(
            command, stdin=stdin or subprocess.DEVNULL, capture_output=True, timeout=LONG_SECONDS, check=False, env=env,
            cwd=ROOT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Problem(f"it took longer than {LONG_SECONDS // 60} minutes and was stopped") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Problem(said[-1] if said else f"{command[0]} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fetch(name: str, target: Path) -> None:
    """Copy a backup out of the volume. Raises Problem."""
    inside = f"{CONTAINER_BACKUPS}/{name}"
    words = ("exec", "-T", "gateway", "cat", inside) if compose.running() else (*_run("cat"), "gateway", inside)
    with target.open("wb") as stream:
        done = subprocess.run(
            compose.command(*words), stdout=stream, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            timeout=LONG_SECONDS, check=False, env=compose.environment(), cwd=ROOT,
        )  # fmt: skip
    if done.returncode != 0:
        raise Problem(f"the backup could not be copied out of Docker: {done.stderr.decode(errors='replace').strip()}")


def forget(name: str) -> None:
    """Delete a backup inside the volume that lies elsewhere now."""
    inside = f"{CONTAINER_BACKUPS}/{name}"
    words = ("exec", "-T", "gateway", "rm", inside) if compose.running() else (*_run("rm"), "gateway", inside)
    subprocess.run(
        compose.command(*words), capture_output=True, timeout=60, check=False, env=compose.environment(), cwd=ROOT
    )


def _run(entrypoint: str) -> tuple[str, ...]:
    return ("run", "--rm", "--no-deps", "-T", "--entrypoint", entrypoint)

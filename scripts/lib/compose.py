"""Hostler in Docker: the compose project, and the engines' containers that the manager started beside it."""

import json
import os

from lib import dotenv, machine
from lib.console import ROOT, Problem, answer, do, say, warn

SERVICES = ("gateway", "worker_manager")
FURTHER = {"litestream": "litestream", "tls": "proxy"}
"""Profiles, and the service that each starts."""
WORKER_STOP_SECONDS = 10
MANAGER_UID = "10001"


def instance() -> str:
    """Name of this Hostler: the compose project's, and the label of its workers."""
    return dotenv.settings().get("HOSTLER_INSTANCE") or "hostler"


def environment() -> dict[str, str]:
    """What `docker compose` reads its variables from, beside .env."""
    env = dict(os.environ)
    # interpolation wants the key even where a command, such as down, has no use for it
    env.setdefault(dotenv.KEY, dotenv.settings().get(dotenv.KEY) or "not-needed-to-stop")
    if revision := answer(["git", "rev-parse", "--short", "HEAD"]):
        env.setdefault("HOSTLER_REVISION", revision)
    return env


def command(*words: str, gpu: bool = False) -> list[str]:
    """A `docker compose` command line of this project."""
    files = ["-f", str(ROOT / "compose.yaml")] + (["-f", str(ROOT / "compose.gpu.yaml")] if gpu else [])
    env_file = ["--env-file", str(dotenv.path())] if dotenv.path().exists() else []
    return ["docker", "compose", "--project-directory", str(ROOT), *env_file, *files, *words]


def prepare() -> None:
    """Write what compose needs to know of this machine into .env, where it does not stand there yet."""
    socket = machine.docker_socket()
    if socket != machine.DEFAULT_SOCKET:
        dotenv.add_missing("HOSTLER_DOCKER_SOCKET", socket)
    group = machine.socket_group()
    if group is not None:
        dotenv.add_missing("DOCKER_GID", str(group))
        dotenv.add_missing("HOSTLER_MANAGER_UID", MANAGER_UID)
        said = dotenv.settings()
        if said.get("HOSTLER_MANAGER_UID") != "0" and said.get("DOCKER_GID") != str(group):
            warn(f"DOCKER_GID={said.get('DOCKER_GID')} is set, but {socket} belongs to group {group}: mend .env")


def build(*, gpu: bool) -> None:
    """Build both images. BASE_IMAGE, from the shell or .env, is the image they start from."""
    do(command("build", *SERVICES, gpu=gpu), "Building the images", env=environment())


def up(*, gpu: bool) -> None:
    """Create and start both services; those that run unchanged stay as they are."""
    words = ("up", "--detach", "--no-build", *SERVICES, *further())
    do(command(*words, gpu=gpu), "Starting the containers", env=environment())


def further() -> tuple[str, ...]:
    """Services that COMPOSE_PROFILES asks for."""
    return tuple(service for profile, service in FURTHER.items() if profile in profiles())


def profiles() -> list[str]:
    """What COMPOSE_PROFILES names."""
    return [name.strip() for name in (dotenv.settings().get("COMPOSE_PROFILES") or "").split(",")]


def running() -> bool:
    """Whether the gateway's container of this project runs."""
    return bool(answer(["docker", "ps", "-q", *_filters("gateway")]))


def exists() -> bool:
    """Whether this project has any container or worker at all, running or not."""
    return bool(answer(["docker", "ps", "-aq", *_filters()]) or workers())


def workers() -> list[str]:
    """Container ids of this instance's engines and jobs."""
    listed = answer(["docker", "ps", "-aq", "--filter", f"label=dev.hostler.instance={instance()}"])
    return (listed or "").split()


def trouble() -> str | None:
    """Which service ended or keeps restarting."""
    rows = answer(["docker", "ps", "-a", "--format", "{{json .}}", *_filters()], seconds=10)
    bad = []
    for line in (rows or "").splitlines():
        row = json.loads(line)
        if row.get("State") in {"restarting", "exited", "dead"}:
            bad.append(f"{row.get('Names')} ({row.get('Status')})")
    return f"a container does not stay up: {', '.join(bad)}" if bad else None


def tail(lines: int = 15) -> str:
    """The last log lines of both services."""
    shown = answer(command("logs", "--no-color", "--tail", str(lines), *SERVICES), env=environment())
    return shown or "   (no log lines)"


def down(*, purge: bool) -> None:
    """Gateway first, so that it drains; then the manager, so that it starts nothing again; then the engines."""
    env = environment()
    for service in SERVICES:
        if answer(["docker", "ps", "-q", *_filters(service)]):
            do(command("stop", service), f"Stopping {service}", env=env)
    remove_workers()
    words = ("down", "--remove-orphans", *(("--volumes",) if purge else ()))
    do(command(*words), "Removing the containers", env=env)


def remove_workers() -> None:
    """Stop and remove this instance's engines and jobs."""
    ids = workers()
    if not ids:
        return
    say(f"   stopping {len(ids)} engine(s)")
    answer(["docker", "stop", "--time", str(WORKER_STOP_SECONDS), *ids], seconds=WORKER_STOP_SECONDS * 3 + 30)
    answer(["docker", "rm", "--force", "--volumes", *ids], seconds=60)
    if left := workers():
        raise Problem(f"these containers could not be removed: {' '.join(left)}; try: docker rm -f {' '.join(left)}")


def image_exists(name: str) -> bool:
    """Whether an image is on this machine."""
    return answer(["docker", "image", "inspect", "--format", "ok", name]) == "ok"


def _filters(service: str | None = None) -> list[str]:
    words = ["--filter", f"label=com.docker.compose.project={instance()}"]
    return words + (["--filter", f"label=com.docker.compose.service={service}"] if service else [])

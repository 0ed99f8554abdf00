"""What is asked of the Docker Engine about one Hostler's containers: synchronous, run in threads by the launcher.

Containers of others are never touched: each is looked at for the label of our instance first.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import structlog
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from worker_manager import policy
from worker_manager.contract import DownloadSpec, WorkerSpec
from worker_manager.launchers import host_paths
from worker_manager.launchers.base import LauncherError, Unit, UnitKind

GONE_SECONDS = 10.0
LOG_BYTES_MAX = 2 * 1024 * 1024
"""Of a log that is read into memory at once."""
PIDS_SECONDS = 10.0
"""How long the list of a container's processes holds, once it is no longer YOUNG_SECONDS old."""
YOUNG_SECONDS = 300.0
"""While an engine loads, the process that takes GPU memory comes late; unknown, it would pass for a foreign one."""
HTTP_CONFLICT = 409

logger = structlog.get_logger()


class Containers:
    """The containers of one instance."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._pids: dict[str, tuple[float, str, tuple[int, ...]]] = {}

    def units(self, client: APIClient) -> list[Unit]:
        """All of them, running or exited."""
        label = f"{policy.LABEL_INSTANCE}={self._instance}"
        units = []
        for summary in client.containers(all=True, filters={"label": [label]}):
            with contextlib.suppress(NotFound):  # removed since it was listed
                units.append(self._unit(client, summary))
        return units

    def _unit(self, client: APIClient, summary: dict[str, Any]) -> Unit:
        labels, state = summary.get("Labels") or {}, summary.get("State")
        unit = read_labels(labels, fallback_id=self._id_from_name(summary), created_at=float(summary["Created"]))
        unit = msgspec.structs.replace(unit, image=str(summary.get("ImageID") or ""))
        if state in ("running", "paused"):
            pids = self._pids_of(client, unit, summary["Id"]) if unit.worker is not None and unit.worker.gpus else ()
            return msgspec.structs.replace(unit, running=True, pids=pids)
        facts = client.inspect_container(summary["Id"])["State"]
        return msgspec.structs.replace(
            unit,
            exit_code=facts.get("ExitCode"),
            out_of_memory=bool(facts.get("OOMKilled")),
            never_started=state == "created",
        )

    def _id_from_name(self, summary: dict[str, Any]) -> str:
        name = str((summary.get("Names") or ["/"])[0]).lstrip("/")
        return name.removeprefix(f"{self._instance}-")

    def _pids_of(self, client: APIClient, unit: Unit, container: str) -> tuple[int, ...]:
        """The container's processes as the host numbers them; asked again now and then."""
        known, is_young = self._pids.get(unit.id), time.time() - unit.created_at < YOUNG_SECONDS
        if known is not None and not is_young and known[1] == container and time.monotonic() - known[0] < PIDS_SECONDS:
            return known[2]
        try:
            top = client.top(policy.container_name(self._instance, unit.id))
            column = top["Titles"].index("PID")
            pids = tuple(sorted(int(row[column]) for row in top["Processes"] or ()))
        except (APIError, KeyError, ValueError):
            pids = ()
        self._pids[unit.id] = (time.monotonic(), container, pids)
        return pids

    def _find(self, client: APIClient, name: str) -> dict[str, Any] | None:
        """The inspected container of this name if it is ours."""
        try:
            found: dict[str, Any] = client.inspect_container(name)
        except NotFound:
            return None
        labels = found["Config"].get("Labels") or {}
        return found if labels.get(policy.LABEL_INSTANCE) == self._instance else None

    def _find_unit(self, client: APIClient, unit_id: str) -> dict[str, Any] | None:
        return self._find(client, policy.container_name(self._instance, unit_id))

    def create_and_start(self, client: APIClient, name: str, body: dict[str, Any]) -> None:
        """Started at the end, or nothing is left."""
        try:
            created = _create(client, name, body)
        except APIError as error:
            if not _is_conflict(error):
                raise
            if self._same_runs(client, name, body):
                return
            created = _create(client, name, body)
        try:
            client.start(created)
        except DockerException:
            with contextlib.suppress(APIError):
                client.remove_container(created, force=True, v=True)
            raise

    def _same_runs(self, client: APIClient, name: str, body: dict[str, Any]) -> bool:
        """After a conflict of names: whether the same unit runs already; else ours is removed, and others' is not."""
        found = self._find(client, name)
        if found is None:
            raise LauncherError(f"a container named {name!r} exists that is not Hostler's: rename or remove it")
        same = found["Config"]["Labels"].get(policy.LABEL_SPEC) == body["Labels"][policy.LABEL_SPEC]
        if same and found["State"]["Running"]:
            return True
        _remove_and_wait(client, found["Id"])
        return False

    def stop(self, client: APIClient, unit_id: str, grace_seconds: float) -> None:
        """Ends it and proves by inspection that it ended. Raises `LauncherError`."""
        found = self._find_unit(client, unit_id)
        if found is None or not found["State"]["Running"]:
            return
        with contextlib.suppress(NotFound):
            if grace_seconds > 0:
                client.stop(found["Id"], timeout=int(grace_seconds))
        for running in _until_gone(client, found["Id"]):
            if not running:
                return
            with contextlib.suppress(APIError):  # it may end by itself between the question and the signal
                client.kill(found["Id"])
        raise LauncherError(f"container of {unit_id!r} still runs after it was stopped and killed")

    def remove(self, client: APIClient, unit_id: str) -> None:
        """Returns when the name is free; one that is gone already is no error."""
        found = self._find_unit(client, unit_id)
        if found is not None:
            _remove_and_wait(client, found["Id"])
        self._pids.pop(unit_id, None)

    def log(self, client: APIClient, unit_id: str, lines: int) -> tuple[str, ...]:
        """The last lines of stdout and stderr."""
        found = self._find_unit(client, unit_id)
        if found is None or lines <= 0:
            return ()
        try:
            text = _end_of(client.logs(found["Id"], stdout=True, stderr=True, tail=lines, stream=True, follow=False))
        except NotFound:
            return ()
        except APIError as error:
            if _is_conflict(error):  # somebody is removing it this instant, and its log with it
                return ()
            raise
        return tuple(line.rstrip() for line in text.decode(errors="replace").splitlines())


def _end_of(chunks: Iterable[bytes]) -> bytes:
    """The last of what an engine printed: lines may be as long as it likes, and this process is small."""
    kept: deque[bytes] = deque()
    size = 0
    for chunk in chunks:
        kept.append(chunk)
        size += len(chunk)
        while size - len(kept[0]) >= LOG_BYTES_MAX:
            size -= len(kept.popleft())
    return b"".join(kept)[-LOG_BYTES_MAX:]


def read_labels(labels: Mapping[str, str], *, fallback_id: str, created_at: float) -> Unit:
    """A container's labels as a unit; one whose labels can't be read has no description, and harms no other."""
    told = labels.get(policy.LABEL_KIND)
    kind = UnitKind(told) if told in (UnitKind.JOB, UnitKind.READER) else UnitKind.WORKER
    worker: WorkerSpec | None = None
    download: DownloadSpec | None = None
    spec = labels.get(policy.LABEL_SPEC, "")
    if kind is UnitKind.READER:
        return Unit(id=fallback_id, kind=kind, running=False, created_at=created_at, model=spec)
    try:
        if kind is UnitKind.WORKER:
            worker = msgspec.json.decode(spec, type=WorkerSpec)
        else:
            download = msgspec.json.decode(spec, type=DownloadSpec)
        generation = int(labels.get(policy.LABEL_GENERATION, "0"))
        length = int(labels[policy.LABEL_LENGTH]) if policy.LABEL_LENGTH in labels else None
    except (msgspec.DecodeError, ValueError) as error:
        logger.warning("labels_unreadable", unit=fallback_id, cause=str(error))
        worker, download, generation, length = None, None, 0, None
    return Unit(
        id=worker.id if worker is not None else fallback_id,
        kind=kind,
        running=False,
        created_at=created_at,
        worker=worker,
        length=length,
        download=download,
        generation=generation,
    )


def run_to_its_end(client: APIClient, body: dict[str, Any]) -> None:
    """Run a container that removes itself, and return when it has, or after a while."""
    made = _create(client, None, body)
    client.start(made)
    for _ in _until_gone(client, made):
        continue


def _create(client: Any, name: str | None, body: dict[str, Any]) -> str:
    """The new container's id. `Any`: the SDK's stubs leave these two calls untyped."""
    return str(client.create_container_from_config(body, name)["Id"])


def entrypoint(client: Any, image: str) -> tuple[str, ...]:
    """The image's own entry point."""
    return tuple(client.inspect_image(image)["Config"].get("Entrypoint") or ())


def inspect_self(client: APIClient) -> dict[str, Any] | None:
    """The manager's own container; None where this Docker Engine has none such, so that our paths are its host's."""
    for own_id in host_paths.own_ids():
        with contextlib.suppress(NotFound):
            inspected: dict[str, Any] = client.inspect_container(own_id)
            return inspected
    return None


def image_digest(client: Any, image: str) -> str:
    """An image's digest; empty where it is not here."""
    try:
        return str(client.inspect_image(image)["Id"])
    except NotFound:
        return ""


def image_names(client: APIClient) -> set[str]:
    """Every name, by tag or digest, of the images that are present."""
    names: set[str] = set()
    for image in client.images():
        names.update(image.get("RepoTags") or ())
        names.update(image.get("RepoDigests") or ())
    return names


def _is_conflict(error: APIError) -> bool:
    return error.response is not None and error.response.status_code == HTTP_CONFLICT


def _remove_and_wait(client: APIClient, container: str) -> None:
    """Returns when its name is free again; a removal that is under way already is waited for."""
    try:
        client.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if not _is_conflict(error):
            raise
    for _ in _until_gone(client, container):
        continue
    with contextlib.suppress(NotFound):
        client.inspect_container(container)
        raise LauncherError(f"container {container[:12]} is still there after it was removed")


def _until_gone(client: APIClient, container: str) -> Iterator[bool]:
    """Whether the container still runs, asked until it is removed or the time is up."""
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        try:
            yield bool(client.inspect_container(container)["State"]["Running"])
        except NotFound:
            return
        time.sleep(0.05)

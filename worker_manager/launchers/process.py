"""Engines as processes of this machine, for where there is no Docker.

Each unit is a session of its own, so that it lives on when the manager dies, and one file `units/<id>.json`, written
whole or not at all, which is to a process what labels are to a container. A process is recognised by its id and its
start time together: ids are used again. What the kernel reports of an end comes through a pidfd, which works for
processes that another manager started as well as for our own.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from worker_manager import policy, reader_policy
from worker_manager.contract import ADAPTERS_FOLDER, ENGINE_SOCKET, DownloadSpec, WorkerSpec
from worker_manager.disk_use import Writable
from worker_manager.engines import sleep_rules, vllm
from worker_manager.files import replace_file
from worker_manager.launchers import model_folder, processes
from worker_manager.launchers.base import ImageMissingError, LauncherError, Unit, UnitEvent, UnitKind
from worker_manager.launchers.log_file import tail, trim
from worker_manager.settings import Settings

KILL_SECONDS = 10.0
"""How long the kernel may take to end a killed group."""
LOG_LIMIT_BYTES = 20 * 1024 * 1024
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "CUDA_HOME", "TMPDIR")
"""What an engine inherits of the manager's environment; everything else is named, so that no secret gets in."""
PACKAGE_FOLDER = str(Path(__file__).resolve().parents[2])
GATE = 'read -r go && [ "$go" = go ] && exec "$@" </dev/null'
"""What a child runs first: it waits for a word on its stdin, and ends if the manager dies without having said it."""


class UnitFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a unit's file holds. `started` is the process's start time in clock ticks since boot."""

    id: str
    instance: str
    kind: UnitKind
    pid: int
    started: int
    created_at: float
    generation: int = 0
    worker: WorkerSpec | None = None
    length: int | None = None
    download: DownloadSpec | None = None
    model: str = ""


class ProcessLauncher:
    """Units as process groups. `environ` is the manager's own environment, `gpu_totals` MiB by UUID."""

    def __init__(
        self,
        settings: Settings,
        *,
        device: Callable[[], str],
        environ: Mapping[str, str],
        gpu_totals: Callable[[], Mapping[str, int]],
        job_command: Callable[[DownloadSpec, str], tuple[str, ...]],
        job_env: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._device = device
        self._environ = environ
        self._gpu_totals = gpu_totals
        self._job_command = job_command
        self._job_env = job_env
        self._units = settings.run / "units"
        self._logs = settings.run / "logs"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._exits: dict[tuple[int, int], int] = {}
        self._watched: dict[tuple[int, int], int] = {}
        self._events: asyncio.Queue[UnitEvent] = asyncio.Queue()
        for folder in (self._units, self._logs, settings.engines):
            folder.mkdir(parents=True, exist_ok=True, mode=0o770)

    async def units(self) -> list[Unit]:
        """Every unit of ours; a file that can't be read is a stopped unit without description."""
        found = await asyncio.to_thread(self._read_all)
        return [self._unit(name, file, pids) for name, file, pids in found]

    async def start_worker(
        self, spec: WorkerSpec, generation: int, *, length: int | None = None, sleep: bool = True
    ) -> None:
        """Start the engine. Raises `PolicyRefusal`, `LauncherError`."""
        if spec.image is not None:
            raise policy.PolicyRefusal("this machine serves without containers, so an image can't be chosen")
        totals = self._gpu_totals()
        policy.check_spec(spec, totals, self._device())
        resolved = await model_folder.in_time(lambda: model_folder.resolve(self._settings.models, spec.model))
        model = policy.check_model_folder(spec, resolved)
        sleep = sleep_rules.may_start(spec, self._settings.engine_env, enabled=self._settings.sleep and sleep)
        folder = self._settings.engines / spec.id
        folder.mkdir(mode=0o770, exist_ok=True)
        (folder / ENGINE_SOCKET).unlink(missing_ok=True)
        shutil.rmtree(folder / ADAPTERS_FOLDER, ignore_errors=True)  # of an engine before this one
        arguments = vllm.serve_arguments(
            spec,
            model_folder=str(self._settings.models / model),
            socket=str(folder / ENGINE_SOCKET),
            stop_seconds=self._settings.stop_seconds,
            gpu_totals_mib=totals,
            sleep=sleep,
            length=length,
        )
        command = (*self._settings.vllm_command, "serve", *arguments)
        unit = UnitFile(
            id=spec.id,
            instance=self._settings.instance,
            kind=UnitKind.WORKER,
            pid=0,
            started=0,
            created_at=time.time(),
            generation=generation,
            worker=spec,
            length=length,
        )
        await asyncio.to_thread(self._spawn, unit, command, self._engine_environment(spec, sleep=sleep))

    def writable(self, spec: WorkerSpec) -> tuple[Writable, ...]:  # noqa: ARG002 - whatever it is
        """A process of this user may write where this user may: there is nothing to bound."""
        return ()

    def adapters_inside(self, worker: str) -> str:
        """As everybody sees it."""
        return str(self._settings.engines / worker / ADAPTERS_FOLDER)

    async def start_download(self, job_id: str, spec: DownloadSpec) -> None:
        """Start the job as a child. Raises `LauncherError`."""
        unit = UnitFile(
            id=job_id,
            instance=self._settings.instance,
            kind=UnitKind.JOB,
            pid=0,
            started=0,
            created_at=time.time(),
            download=spec,
        )
        command = (sys.executable, *self._job_command(spec, str(self._settings.models)))
        home = {
            "PYTHONPATH": PACKAGE_FOLDER,
            "HOME": str(self._settings.run),
            "HF_HOME": str(self._settings.run / "hub"),
        }
        await asyncio.to_thread(self._spawn, unit, command, self._inherited() | home | dict(self._job_env))

    async def start_reader(self, reader_id: str, model: str, reserve_mib: int) -> None:
        """Start the reader as a child. Raises `LauncherError`."""
        unit = UnitFile(
            id=reader_id,
            instance=self._settings.instance,
            kind=UnitKind.READER,
            pid=0,
            started=0,
            created_at=time.time(),
            model=model,
        )
        words = reader_policy.reader_words(str(self._settings.models / model), reserve_mib)
        env = self._inherited() | {"PYTHONPATH": PACKAGE_FOLDER}
        await asyncio.to_thread(self._spawn, unit, (sys.executable, *words), env)

    async def stop(self, unit_id: str, grace_seconds: float) -> None:
        """TERM to the group, KILL after the grace, or at once; returns when no process of it is left."""
        file = await asyncio.to_thread(self._read, unit_id)
        if file is None:
            return
        group = processes.group_of(file.pid, file.started)
        if not await asyncio.to_thread(processes.members, group):
            return
        if grace_seconds > 0:
            processes.signal_group(group, signal.SIGTERM)
            if await self._gone(group, grace_seconds):
                return
        processes.signal_group(group, signal.SIGKILL)
        if not await self._gone(group, KILL_SECONDS):
            raise LauncherError(f"processes of {unit_id!r} are left {KILL_SECONDS:g} s after they were killed")

    async def remove(self, unit_id: str) -> None:
        """Remove unit file, log and socket folder."""
        await asyncio.to_thread(self._remove, unit_id)

    async def log(self, unit_id: str, lines: int) -> tuple[str, ...]:
        """The last lines of stdout and stderr together."""
        return await asyncio.to_thread(tail, self._log(unit_id), lines)

    async def events(self) -> AsyncIterator[UnitEvent]:
        """Ends of processes, as the kernel reports them."""
        while True:
            yield await self._events.get()

    async def images(self) -> tuple[str, ...]:
        """The engine's command, if its program can be found."""
        return (" ".join(self._settings.vllm_command),) if self._found() else ()

    def program(self) -> str:
        """Command, place and time: installing another version writes the program anew."""
        found = self._found()
        try:
            written = Path(found).stat().st_mtime_ns if found else 0
        except OSError:
            written = 0
        return f"{' '.join(self._settings.vllm_command)} @{written}"

    def _found(self) -> str | None:
        return shutil.which(self._settings.vllm_command[0], path=self._environ.get("PATH"))

    async def engine(self) -> str:
        """Not known before it runs."""
        return ""

    async def close(self) -> None:
        """Close the pidfds; the processes live on."""
        loop = asyncio.get_running_loop()
        for descriptor in self._watched.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()
        for child in self._children.values():
            child.returncode = child.returncode or 0  # or Popen would complain that its process outlives it

    # starting

    def _spawn(self, unit: UnitFile, command: tuple[str, ...], env: Mapping[str, str]) -> None:
        """Start the process and write its file; a crash between the two would leave a process nobody knows.

        Hence the child waits at a gate until its file is on disk.
        """
        if (known := self._read(unit.id)) is not None and processes.is_alive(known.pid, known.started):
            return
        if shutil.which(command[0], path=env.get("PATH")) is None:
            raise ImageMissingError(f"the engine's program {command[0]!r} was not found; set HOSTLER_VLLM_COMMAND")
        reading, writing = os.pipe()
        try:
            with open(reading, "rb") as gate, open(writing, "wb") as word:  # noqa: PTH123 - descriptors, not paths
                child = self._fork(unit.id, command, env, gate)
                self._children[unit.id] = child
                self._write(msgspec.structs.replace(unit, pid=child.pid, started=processes.start_time(child.pid) or 0))
                word.write(b"go\n")
        except OSError as error:
            # the gate is closed by now: a child that was not let through has ended, or does at once
            if (unfinished := self._children.pop(unit.id, None)) is not None:
                unfinished.wait(KILL_SECONDS)
            raise LauncherError(f"{command[0]!r} could not be started: {error}") from error

    def _fork(
        self, unit_id: str, command: tuple[str, ...], env: Mapping[str, str], gate: BinaryIO
    ) -> subprocess.Popen[bytes]:
        with self._log(unit_id).open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - the command is a setting plus checked words
                ("/bin/sh", "-c", GATE, "sh", *command),
                stdin=gate,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )

    def _engine_environment(self, spec: WorkerSpec, *, sleep: bool) -> dict[str, str]:
        home = self._settings.cache / "process"
        home.mkdir(parents=True, exist_ok=True)
        values = vllm.environment(
            spec,
            home=str(home),
            cpu_kv_cache_gib=self._settings.cpu_kv_cache_gib,
            device=self._device(),
            extra=self._settings.engine_env,
            sleep=sleep,
        )
        if self._device() == "cuda":
            values["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
        return self._inherited() | values

    def _inherited(self) -> dict[str, str]:
        return {name: self._environ[name] for name in KEPT_ENVIRONMENT if name in self._environ}

    # unit files

    def _log(self, unit_id: str) -> Path:
        return self._logs / f"{unit_id}.log"

    def _write(self, unit: UnitFile) -> None:
        replace_file(self._units / f"{unit.id}.json", msgspec.json.encode(unit))

    def _read(self, unit_id: str) -> UnitFile | None:
        """None where there is no such file, or none that can be read, or one of another Hostler."""
        try:
            unit = msgspec.json.decode((self._units / f"{unit_id}.json").read_bytes(), type=UnitFile)
        except (OSError, msgspec.DecodeError):
            return None
        return unit if unit.id == unit_id and unit.instance == self._settings.instance else None

    def _read_all(self) -> list[tuple[str, UnitFile | None, tuple[int, ...]]]:
        """Name, file and process ids of each unit; only GPU workers' ids are looked up, nobody asks for others'."""
        for path in self._logs.glob("*.log"):
            trim(path, LOG_LIMIT_BYTES)
        found = []
        for path in sorted(self._units.glob("*.json")):
            file = self._read(path.stem)
            on_gpu = file is not None and file.worker is not None and bool(file.worker.gpus)
            pids = processes.members(processes.group_of(file.pid, file.started)) if file and on_gpu else ()
            found.append((path.stem, file, pids))
        return found

    def _remove(self, unit_id: str) -> None:
        shutil.rmtree(self._settings.engines / unit_id, ignore_errors=True)
        self._log(unit_id).unlink(missing_ok=True)
        (self._units / f"{unit_id}.json").unlink(missing_ok=True)
        if (child := self._children.pop(unit_id, None)) is not None:
            child.poll()  # whoever was stopped since the last listing has not been reaped yet

    # watching

    def _unit(self, name: str, file: UnitFile | None, pids: tuple[int, ...]) -> Unit:
        if file is None:
            return Unit(id=name, kind=UnitKind.WORKER, running=False, created_at=0.0)
        self._reap(file)
        running = processes.is_alive(file.pid, file.started)
        if running:
            self._watch(file)
        return Unit(
            id=file.id,
            kind=file.kind,
            running=running,
            created_at=file.created_at,
            exit_code=None if running else self._exits.get((file.pid, file.started)),
            worker=file.worker,
            length=file.length,
            download=file.download,
            model=file.model,
            generation=file.generation,
            pids=pids,
        )

    def _reap(self, file: UnitFile) -> None:
        """Learn the exit code of a child of ours; the kernel keeps it until we ask."""
        child = self._children.get(file.id)
        if child is not None and child.pid == file.pid and (code := child.poll()) is not None:
            self._exits[file.pid, file.started] = code

    def _watch(self, file: UnitFile) -> None:
        """Ask the kernel to tell the end of this process."""
        key = (file.pid, file.started)
        if key in self._watched:
            return
        try:
            descriptor = os.pidfd_open(file.pid)
        except OSError:
            self._events.put_nowait(UnitEvent(id=file.id, what="exited"))
            return
        self._watched[key] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, key, file.id)

    def _ended(self, key: tuple[int, int], unit_id: str) -> None:
        descriptor = self._watched.pop(key)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._events.put_nowait(UnitEvent(id=unit_id, what="exited"))

    async def _gone(self, group: int, seconds: float) -> bool:
        """Whether the whole group ends in this time."""
        deadline = time.monotonic() + seconds
        while await asyncio.to_thread(processes.members, group):
            for child in self._children.values():
                child.poll()
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

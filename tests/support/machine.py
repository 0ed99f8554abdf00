"""A machine with a real manager process on it, and the calls that a gateway would make."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.support.processes import REPOSITORY, RunningProcess, python_module
from tests.support.waiting import wait_until
from worker_manager.contract import (
    DesiredSet,
    Download,
    DownloadState,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

MANAGER_SECONDS = 30.0
STOP_SECONDS = 5


class Machine:
    """One machine with a manager; `folder` holds its run, models and cache folders."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._environment = environment
        self.socket = folder / "run" / "manager" / "manager.sock"
        self.manager: RunningProcess | None = None
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://manager", timeout=20
        )
        self._generation = 0

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            "HOSTLER_LAUNCHER": "process",
            "HOSTLER_DEVICE": "cpu",
            "HOSTLER_RUN": str(self.folder / "run"),
            "HOSTLER_MODELS": str(self.folder / "models"),
            "HOSTLER_CACHE": str(self.folder / "cache"),
            "HOSTLER_VLLM_COMMAND": shlex.join([sys.executable, "-m", "tests.engine_simulator"]),
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY}",
            "HOSTLER_STOP_SECONDS": str(STOP_SECONDS),
            **self._environment,
            **extra,
        }

    def start(self, **extra: str) -> RunningProcess:
        if self.manager is not None:
            self.manager.stop()
        self.manager = RunningProcess(python_module("worker_manager"), self.environment(**extra))
        self.manager.wait_for_socket(self.socket, MANAGER_SECONDS)
        return self.manager

    def add_model(self, name: str = "tiny", **orders: Any) -> None:
        folder = self.folder / "models" / "local" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 2048}')
        (folder / "simulator.json").write_text(json.dumps(orders))

    def send(self, *specs: WorkerSpec, **residencies: Residency) -> httpx.Response:
        """Make these the desired workers; by id how warm those should be that are not to be hot."""
        self._generation += 1
        return self.put(DesiredSet(generation=self._generation, workers=specs, residencies=residencies))

    def put(self, wanted: DesiredSet) -> httpx.Response:
        return self.client.put("/desired", content=msgspec.json.encode(wanted))

    def observed(self, after: int | None = None, wait: float = 0) -> ObservedSet:
        query = {} if after is None else {"after": str(after), "wait": str(wait)}
        answer = self.client.get("/observed", params=query)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=ObservedSet)

    def worker(self, worker: str = "w1") -> ObservedWorker | None:
        return next((each for each in self.observed().workers if each.spec.id == worker), None)

    def wait_for(self, state: WorkerState, worker: str = "w1", seconds: float = MANAGER_SECONDS) -> ObservedWorker:
        """The worker, once it is in this state."""

        def reached() -> ObservedWorker | None:
            seen = self.worker(worker)
            return seen if seen is not None and seen.state is state else None

        found = wait_until(reached, f"{worker} {state}", seconds=seconds, interval=0.05)
        assert found is not None
        return found

    def wait_for_restarts(self, count: int, worker: str = "w1", seconds: float = MANAGER_SECONDS) -> None:
        """Wait until so many deaths of the worker were noticed."""

        def noticed() -> bool:
            seen = self.worker(worker)
            return seen is not None and seen.restarts == count

        wait_until(noticed, f"{worker} restarts for the {count}. time", seconds=seconds, interval=0.02)

    def wait_until_gone(self, worker: str = "w1") -> None:
        wait_until(lambda: self.worker(worker) is None, f"{worker} gone", seconds=MANAGER_SECONDS, interval=0.05)

    def pid(self, worker: str = "w1") -> int:
        return int(json.loads((self.folder / "run" / "units" / f"{worker}.json").read_text())["pid"])

    def ask_engine(self, worker: str = "w1") -> int:
        socket = self.folder / "run" / "engines" / worker / "engine.sock"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine") as client:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
            return client.post("/v1/completions", json=body, timeout=20).status_code

    def download(self, job: str) -> Download | None:
        return next((each for each in self.observed().downloads if each.id == job), None)

    def wait_for_download(self, job: str, state: DownloadState) -> Download:
        """The download, once it is in this state."""

        def reached() -> Download | None:
            seen = self.download(job)
            return seen if seen is not None and seen.state is state else None

        found = wait_until(reached, f"{job} {state}", seconds=MANAGER_SECONDS, interval=0.05)
        assert found is not None
        return found

    def clean_up(self) -> None:
        self.client.close()
        if self.manager is not None:
            self.manager.stop()
        stopper = RunningProcess(python_module("worker_manager", "stop-workers"), self.environment())
        assert stopper.wait(60) == 0, stopper.output
        stopper.stop()


def spec(worker: str = "w1", **change: Any) -> WorkerSpec:
    base = WorkerSpec(id=worker, endpoint="tiny", model="local/tiny", served_names=("tiny",))
    return msgspec.structs.replace(base, **change)


def is_running(pid: int) -> bool:
    """Not for a zombie: an orphan's new parent may be slow to bury it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")

"""A whole Hostler for tests: a real gateway and a real worker manager as processes, engines by the process launcher."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import signal
import ssl
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.engine_simulator.configuration import Simulation
from tests.support.hostler import CLIENT_SECONDS, Hostler, bearer, chat
from tests.support.processes import REPOSITORY, RunningProcess, free_port, python_module, short_folder
from tests.support.waiting import wait_until

__all__ = ["ADMIN_KEY", "CLIENT_SECONDS", "Stack", "bearer", "chat", "running_stack"]

ADMIN_KEY = "an-admin-key-of-the-tests"
START_SECONDS = 30.0
"""For a process to listen; a machine that does other things meanwhile is no failure."""


class Stack(Hostler):
    """One Hostler in a folder of its own; `start_*` and the processes serve to kill and bring back either side."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str] | None = None, *, trust: ssl.SSLContext | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        scheme = "http" if trust is None else "https"
        super().__init__(f"{scheme}://127.0.0.1:{self.port}", ADMIN_KEY, folder / "models", trust=trust)
        self.run = folder / "run"
        self.env = {
            "HOSTLER_ADMIN_KEY": ADMIN_KEY,
            "HOSTLER_PORT": str(self.port),
            "HOSTLER_DATA": str(folder / "data"),
            "HOSTLER_BACKUPS": str(folder / "backups"),
            "HOSTLER_MODELS": str(self.models),
            "HOSTLER_RUN": str(self.run),
            "HOSTLER_CACHE": str(folder / "cache"),
            "HOSTLER_INSTANCE": folder.name,
            "HOSTLER_LAUNCHER": "process",
            "HOSTLER_DEVICE": "cpu",
            "HOSTLER_VLLM_COMMAND": f"{sys.executable} -m tests.engine_simulator",
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY}",
            **(settings or {}),
        }
        self._seeds = itertools.count(1)
        self.gateway: RunningProcess | None = None
        self.manager: RunningProcess | None = None
        (self.models / "local").mkdir(parents=True, exist_ok=True)

    def start_manager(self) -> RunningProcess:
        """Start the worker manager and wait for its socket."""
        self.manager = RunningProcess(python_module("worker_manager"), self.env)
        self.manager.wait_for_socket(self.run / "manager" / "manager.sock", START_SECONDS)
        return self.manager

    def start_gateway(self) -> RunningProcess:
        """Start the gateway and wait for its port."""
        self.gateway = RunningProcess(python_module("gateway"), self.env)
        self.gateway.wait_for_port(self.port, START_SECONDS)
        return self.gateway

    def start(self) -> "Stack":
        """Start both and wait until inference can go on."""
        self.manager = RunningProcess(python_module("worker_manager"), self.env)
        self.start_gateway()  # beside the manager's start: each waits for the other as long as it takes
        self.manager.wait_for_socket(self.run / "manager" / "manager.sock", START_SECONDS)
        wait_until(self.is_ready, "the gateway is ready")
        return self

    def behave(self, name: str, simulation: Simulation) -> None:
        """Change how a model's ready engines behave, and wait until they all do."""
        marked = dataclasses.replace(simulation, seed=next(self._seeds))
        self.order(name, marked)
        for worker in self.status(name)["workers"]:
            if worker["state"] == "ready":
                seen = functools.partial(self._has_seed, worker["id"], marked.seed)
                wait_until(seen, f"{worker['id']} has read its orders")

    def _has_seed(self, worker: str, seed: int) -> bool:
        return bool(self.engine_stats(worker)["seed"] == seed)

    def engine_stats(self, worker: str) -> dict[str, Any]:
        """What a simulator says of itself."""
        transport = httpx.HTTPTransport(uds=str(self.run / "engines" / worker / "engine.sock"))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=CLIENT_SECONDS) as client:
            stats: dict[str, Any] = client.get("/simulator/stats").json()
        return stats

    def kill_engine(self, worker: str) -> None:
        """`kill -9` of an engine, behind the manager's back."""
        os.kill(self.engine_stats(worker)["pid"], signal.SIGKILL)

    @contextlib.contextmanager
    def socket_hidden(self, worker: str) -> Iterator[Path]:
        """The path of a worker's socket while its engine can't be reached: for something else to listen there."""
        path = self.run / "engines" / worker / "engine.sock"
        hidden = path.with_suffix(".hidden")
        path.rename(hidden)
        try:
            yield path
        finally:
            hidden.rename(path)

    def log_lines(self) -> list[dict[str, Any]]:
        """Every line the gateway has logged, parsed; raises where one is not JSON."""
        assert self.gateway is not None
        return [json.loads(line) for line in self.gateway.output.splitlines() if line.strip()]

    def stop(self) -> None:
        """Stop everything, engines included."""
        self.client.close()
        with contextlib.ExitStack() as stack:
            # in this order: a manager that still runs would start again what was stopped
            stack.callback(self._stop_workers)
            for process in (self.manager, self.gateway):
                if process is not None:
                    stack.callback(process.stop)

    def _stop_workers(self) -> None:
        stopping = RunningProcess(python_module("worker_manager", "stop-workers"), self.env)
        try:
            stopping.wait(30)
        finally:
            stopping.stop()


@contextlib.contextmanager
def running_stack(settings: Mapping[str, str] | None = None, *, trust: ssl.SSLContext | None = None) -> Iterator[Stack]:
    """A started Hostler for the length of a `with` block; with `trust` its clients speak TLS."""
    with short_folder() as folder:
        stack = Stack(folder, settings, trust=trust)
        try:
            yield stack.start()
        finally:
            stack.stop()

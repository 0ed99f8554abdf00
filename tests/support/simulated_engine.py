"""Start engine simulators from tests: a model folder, a process, and clients on its socket."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.engine_simulator.configuration import Simulation, write
from tests.support.processes import RunningProcess, python_module, running
from tests.support.waiting import wait_until

CLIENT_SECONDS = 10.0


def model_folder(folder: Path, simulation: Simulation | None = None) -> Path:
    """Make what the simulator takes for a model: a config.json, and a simulator.json if told."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    if simulation is not None:
        write(folder, simulation)
    return folder


class SimulatedEngine:
    """A running simulator: its process, its socket, and what it says of itself."""

    def __init__(self, process: RunningProcess, socket: Path, model: Path) -> None:
        self.process = process
        self.socket = socket
        self.model = model

    def order(self, simulation: Simulation) -> None:
        """Change how it behaves while it runs; returns when the engine has seen it."""
        write(self.model, simulation)
        wanted = dataclasses.asdict(simulation)
        wait_until(lambda: self.stats()["simulation"] == wanted, "the engine's look at the order")

    def client(self) -> httpx.Client:
        """Make a client on its socket; relative paths are enough."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://engine", timeout=CLIENT_SECONDS)

    def async_client(self) -> httpx.AsyncClient:
        """Make a client on its socket for a running event loop."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=CLIENT_SECONDS)

    def stats(self) -> dict[str, Any]:
        """Ask for `/simulator/stats`."""
        with self.client() as client:
            answer: dict[str, Any] = client.get("/simulator/stats").json()
        return answer


@contextlib.contextmanager
def running_engine(
    folder: Path,
    simulation: Simulation | None = None,
    *,
    names: Sequence[str] = ("demo",),
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[SimulatedEngine]:
    """Run a simulator in `folder` (a short path: the socket lies in it) until the end of the block."""
    model, socket = model_folder(folder / "model", simulation), folder / "engine.sock"
    with running(serve_command(model, socket, names, flags), env) as process:
        process.wait_for_socket(socket)
        yield SimulatedEngine(process, socket, model)


def serve_command(model: Path, socket: Path, names: Sequence[str] = ("demo",), flags: Sequence[str] = ()) -> list[str]:
    """Give the command line that starts a simulator."""
    return python_module(
        "tests.engine_simulator", "serve", str(model), "--uds", str(socket), "--served-model-name", *names, *flags
    )

"""What a user does with a Hostler over its address, however it runs: the part that all stacks of the tests share."""

import ssl
from pathlib import Path
from typing import Any

import httpx

from tests.engine_simulator.configuration import Simulation, write
from tests.support.simulated_engine import model_folder
from tests.support.waiting import wait_until

CLIENT_SECONDS = 30.0


class Hostler:
    """A running Hostler: its address, an admin's client, and its models folder."""

    def __init__(
        self,
        address: str,
        key: str,
        models: Path,
        *,
        seconds: float = CLIENT_SECONDS,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address
        self.key = key
        self.models = models
        self.trust = trust
        self.client = httpx.Client(base_url=address, headers=bearer(key), timeout=seconds, verify=trust or True)

    def is_ready(self) -> bool:
        """Whether `/readyz` says so."""
        return self.client.get("/readyz").status_code == 200

    def model(self, name: str, simulation: Simulation | None = None) -> Path:
        """Make (or change) a simulated model under local/."""
        return model_folder(self.models / "local" / name, simulation)

    def order(self, name: str, simulation: Simulation) -> None:
        """Change how a model's engines behave while they run."""
        write(self.models / "local" / name, simulation)

    def endpoint(self, name: str, simulation: Simulation | None = None, **fields: Any) -> dict[str, Any]:
        """Make a simulated model and register an endpoint for it under the same name."""
        self.model(name, simulation)
        return self.register(name, f"local/{name}", **fields)

    def register(self, name: str, model: str, **fields: Any) -> dict[str, Any]:
        """Create an endpoint for a model that is there, or on the hub."""
        answer = self.client.post("/api/endpoints", json={"name": name, "model": model, **fields})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def status(self, name: str) -> dict[str, Any]:
        """The status of an endpoint."""
        status: dict[str, Any] = self.client.get(f"/api/endpoints/{name}").json()["status"]
        return status

    def workers(self) -> list[dict[str, Any]]:
        """Every worker the manager sees."""
        workers: list[dict[str, Any]] = self.client.get("/api/workers").json()
        return workers

    def wait_for_state(self, name: str, state: str, seconds: float = 20) -> dict[str, Any]:
        """Wait until an endpoint's state is this one."""
        wait_until(lambda: self.status(name)["state"] == state, f"{name} is {state}", seconds=seconds)
        return self.status(name)

    def metrics(self) -> dict[str, float]:
        """The gateway's `/metrics`: values by name, with the labels as they are written there."""
        lines = self.client.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def ask(self, model: str, content: str = "hello", **fields: Any) -> httpx.Response:
        """Send one chat completion and get its answer."""
        return self.client.post("/v1/chat/completions", json=chat(model, content, **fields))


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}


def chat(model: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}

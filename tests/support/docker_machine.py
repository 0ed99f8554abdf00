"""A machine with a real manager whose engines are containers."""

import os
import uuid
from pathlib import Path

import docker

from tests.support.machine import Machine

IMAGE = "hostler/engine-simulator:latest"
DOCKER_HOST = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


class DockerMachine(Machine):
    """A machine whose engines are containers of an instance of its own."""

    def __init__(self, folder: Path, docker_host: str = DOCKER_HOST, **environment: str) -> None:
        self.instance = f"test-{uuid.uuid4().hex[:8]}"
        fixed = {
            "HOSTLER_LAUNCHER": "docker",
            "HOSTLER_DOCKER_HOST": docker_host,
            "HOSTLER_INSTANCE": self.instance,
            "HOSTLER_ENGINE_IMAGE": IMAGE,
            "HOSTLER_ENGINE_ENV": "",
            "HOSTLER_ENGINE_MEMORY_GIB": "1",
        }
        super().__init__(folder, **{**fixed, **environment})
        self.engine = docker.DockerClient(base_url=DOCKER_HOST, timeout=30)

    def container_id(self, worker: str = "w1") -> str:
        return str(self.engine.containers.get(f"{self.instance}-{worker}").id)

    def container_count(self) -> int:
        label = f"dev.hostler.instance={self.instance}"
        return len(self.engine.containers.list(all=True, filters={"label": label}))

    def clean_up(self) -> None:
        super().clean_up()
        assert self.container_count() == 0
        self.engine.close()

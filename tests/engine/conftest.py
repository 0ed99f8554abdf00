"""A real vLLM on the CPU behind a whole Hostler: in containers, and as plain processes."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import openai
import pytest

from tests.conftest import VLLM_IMAGE
from tests.support.compose import ComposeStack, compose_stack
from tests.support.hostler import Hostler
from tests.support.processes import REPOSITORY
from tests.support.stack import Stack, running_stack

START_SECONDS = 280
"""The longest a request may wait for its engine's start."""
CHAT = {"engine_args": {"enforce-eager": True, "max-num-seqs": 8}, "max_model_len": 4096}
"""How a tiny model is served: nothing to compile, little to allocate."""
EMBEDDING = {"engine_args": {"enforce-eager": True, "max-num-seqs": 8}, "max_model_len": 512}
LOG_CHARACTERS = 10_000


def make_model(folder: Path, kind: str) -> None:
    """A tiny model with random weights."""
    script = str(REPOSITORY / "scripts" / "make_demo_model")
    subprocess.run([sys.executable, script, "--kind", kind, str(folder)], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder local/ with a chat model and an embedding model."""
    folder = tmp_path_factory.mktemp("vllm-models") / "local"
    make_model(folder / "chat", "llama")
    make_model(folder / "embed", "embedding")
    return folder


@pytest.fixture(scope="session")
def containers(made_models: Path) -> Iterator[ComposeStack]:
    """Engines in containers, from the compose file as it stands."""
    with compose_stack(HOSTLER_ENGINE_IMAGE=VLLM_IMAGE, HOSTLER_STOP_SECONDS="10") as stack:
        shutil.copytree(made_models, stack.models / "local")
        # with room for adapters, so that those of test_adapters cost no start of their own
        stack.register("chat", "local/chat", **CHAT, lora={"max_rank": 16, "max_loras": 2, "max_cpu_loras": 4})
        stack.register("embed", "local/embed", **EMBEDDING)
        yield stack


@functools.cache
def vllm_command() -> str | None:
    """How vLLM is started on this machine without a container; None where it is not installed."""
    own = REPOSITORY / ".venv-vllm" / "bin" / "vllm"
    found = os.environ.get("HOSTLER_TEST_VLLM_COMMAND")
    return found or (shlex.quote(str(own)) if own.exists() else shutil.which("vllm"))


@pytest.fixture(scope="session")
def processes(made_models: Path) -> Iterator[Stack]:
    """Engines as child processes of the worker manager."""
    command = vllm_command()
    if command is None:
        pytest.skip("vllm is not installed beside the project (.venv-vllm, made by scripts/up --demo without Docker)")
    settings = {"HOSTLER_VLLM_COMMAND": command, "HOSTLER_ENGINE_ENV": "", "HOSTLER_STOP_SECONDS": "10"}
    with running_stack(settings) as stack:
        shutil.copytree(made_models, stack.models / "local", dirs_exist_ok=True)
        stack.register("chat", "local/chat", **CHAT)
        yield stack


def client(stack: Hostler) -> openai.OpenAI:
    """A user's client, patient enough for an engine's start."""
    return openai.OpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, timeout=START_SECONDS, max_retries=0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the services and the engines logged beside a failure."""
    report = yield
    if not report.failed:
        return report
    for stack in getattr(item, "funcargs", {}).values():
        if isinstance(stack, ComposeStack):
            report.sections.append(("logs of the services", stack.project.logs()[-LOG_CHARACTERS:]))
        if isinstance(stack, Hostler):
            for worker in stack.workers():
                log = stack.client.get(f"/api/workers/{worker['spec']['id']}/logs").text
                report.sections.append((f"log of {worker['spec']['id']}", log[-LOG_CHARACTERS:]))
    return report

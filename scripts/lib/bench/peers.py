"""Other gateways from PyPI, each in an environment of its own."""

import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lib.bench import environments, wire
from lib.bench.child import Child, free_port
from lib.bench.target import Bench, Target
from lib.console import Problem, answer

START_SECONDS = 90
LITELLM_CONFIGURATION = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: hosted_vllm/{model}, api_base: "{engine}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
"""


def start_vllm_router(policy: str) -> Callable[[Bench], Target]:
    """The Rust router of the vLLM project with one of its policies."""

    def start(bench: Bench) -> Target:
        program = environments.of_packages("vllm-router", "vllm-router") / "vllm-router"
        target = Target(f"vllm-router/{policy}", f"vllm-router {_version(program, 'vllm-router')} (Rust), {policy}")
        return _start_router(bench, target, [str(program)], policy, "warning")

    return start


def start_sglang_router(policy: str) -> Callable[[Bench], Target]:
    """The Rust router of the SGLang project with one of its policies."""

    def start(bench: Bench) -> Target:
        program = environments.of_packages("sglang-router", "sglang-router") / "sglang-router"
        target = Target(
            f"sglang-router/{policy}", f"sglang-router {_version(program, 'sglang-router')} (Rust), {policy}"
        )
        return _start_router(bench, target, [str(program), "launch"], policy, "warn")

    return start


def start_litellm(bench: Bench) -> Target:
    """LiteLLM's proxy with a master key, which it asks for, and no database."""
    program = environments.of_packages("litellm", "litellm[proxy]") / "litellm"
    target = Target("litellm", f"LiteLLM {_version(program, 'litellm')} proxy, key check on, no database")
    target.strict = False  # it parses and rebuilds every event
    target.slow = True
    target.chunks_per_second = 300
    target.start_seconds = 0.03
    target.key = f"sk-{secrets.token_hex(12)}"
    target.port = free_port()
    configuration = bench.folder / "litellm.yaml"
    engine = f"http://127.0.0.1:{bench.engine_port()}"
    configuration.write_text(LITELLM_CONFIGURATION.format(model=wire.MODEL, engine=engine, key=target.key))
    command = [str(program), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(target.port)]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    return _launch(bench, target, [*command, "--telemetry", "False"], env)


def _start_router(bench: Bench, target: Target, program: list[str], policy: str, level: str) -> Target:
    target.port = free_port()
    words = ["--policy", policy, "--port", str(target.port), "--prometheus-port", str(free_port())]
    words += ["--worker-urls", f"http://127.0.0.1:{bench.engine_port()}", "--log-level", level]
    return _launch(bench, target, [*program, *words], {})


def _launch(bench: Bench, target: Target, command: list[str], env: dict[str, str]) -> Target:
    name = target.name.replace("/", "-")
    env_of_child = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env
    log = bench.folder / f"{name}.log"
    child = Child(target.name, command, core=bench.gateway_core, log=log, env=env_of_child)
    target.children.append(child)
    try:
        child.wait_until(lambda: _answers(target), START_SECONDS)
    except Problem:
        target.stop()
        raise
    return target


def _answers(target: Target) -> bool:
    """Whether a request gets through to the engine."""
    body = {"model": wire.MODEL, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    address = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answered:
            return bool(answered.status == 200)  # noqa: PLR2004 - OK
    except (OSError, urllib.error.HTTPError):
        return False


def _version(program: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return answer([str(program.parent / "python"), "-c", code]) or "unknown"


STARTERS: dict[str, Callable[[Bench], Target]] = {
    "vllm-router/cache_aware": start_vllm_router("cache_aware"),
    "vllm-router/round_robin": start_vllm_router("round_robin"),
    "sglang-router/cache_aware": start_sglang_router("cache_aware"),
    "litellm": start_litellm,
}

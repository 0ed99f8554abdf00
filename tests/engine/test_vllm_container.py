"""A real vLLM in containers: what Docker says of it, embeddings, a second start, and a model it does not serve."""

import json
import shutil
from typing import Any

import pytest

from tests.engine.conftest import CHAT, START_SECONDS, client
from tests.support.compose import ComposeStack, docker
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(START_SECONDS + 20)

CACHE = ["find", "/cache", "-type", "f"]


def engine_of(stack: ComposeStack, endpoint: str) -> dict[str, Any]:
    """`docker inspect` of the engine that serves an endpoint."""
    (found,) = [one for worker, one in stack.project.engines().items() if worker.startswith(f"{endpoint}-")]
    return found


def ask(stack: ComposeStack) -> str:
    """A short answer of the chat model."""
    with client(stack) as user:
        return user.completions.create(model="chat", prompt="The sea is", max_tokens=4).choices[0].text


def test_vllm_runs_without_a_network_started_by_a_request(containers: ComposeStack) -> None:
    assert ask(containers)
    engine = engine_of(containers, "chat")
    assert engine["Config"]["Image"] == containers.client.get("/api/host").json()["images"][0]
    assert engine["HostConfig"]["NetworkMode"] == "none"
    assert engine["HostConfig"]["CapDrop"] == ["ALL"]
    assert engine["HostConfig"]["ReadonlyRootfs"] is True
    assert engine["Config"]["User"] == "10001:10001"
    assert docker("exec", engine["Id"], "ls", "/sys/class/net").split() == ["lo"]


def test_an_embedding_model_is_served(containers: ComposeStack) -> None:
    with client(containers) as user:
        answer = user.embeddings.create(model="embed", input=["the sea", "a ship", "the sea"])
    first, second, third = (item.embedding for item in answer.data)
    assert len(first) > 8
    assert first == pytest.approx(third, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-3)


def test_a_second_start_finds_the_caches_of_the_first(containers: ComposeStack) -> None:
    assert ask(containers)
    before = engine_of(containers, "chat")
    files = set(docker("exec", before["Id"], *CACHE).split())
    assert containers.client.post("/api/endpoints/chat/stop").status_code < 300
    containers.wait_for_state("chat", "cold", seconds=60)
    wait_until(
        lambda: not [worker for worker in containers.project.engines() if worker.startswith("chat-")],
        "the first engine is gone",
        seconds=30,
        interval=0.2,
    )
    assert ask(containers)
    after = engine_of(containers, "chat")
    assert after["Id"] != before["Id"]
    assert files <= set(docker("exec", after["Id"], *CACHE).split())


def test_a_model_that_vllm_does_not_serve_is_diagnosed(containers: ComposeStack) -> None:
    folder = containers.models / "local" / "strange"
    shutil.copytree(containers.models / "local" / "chat", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["StrangeForCausalLM"], "model_type": "strange"}
    (folder / "config.json").write_text(json.dumps(config))
    containers.register("strange", "local/strange", **CHAT)
    answer = containers.client.post(
        "/v1/completions", json={"model": "strange", "prompt": "a", "max_tokens": 1}, timeout=START_SECONDS
    )
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "endpoint_failed"
    status = containers.status("strange")
    assert status["state"] == "failed"
    (worker,) = status["workers"]
    assert worker["failure"]["kind"] == "model_unsupported"
    assert worker["failure"]["hint"]
    assert any("strange" in line.lower() for line in worker["failure"]["log_tail"])
    assert "does not serve this kind of model" in answer.json()["error"]["message"]
    containers.client.delete("/api/endpoints/strange")


def test_the_start_of_a_real_engine_tells_what_it_took(containers: ComposeStack) -> None:
    assert ask(containers)

    def measured() -> dict[str, Any]:
        [worker] = [one for one in containers.workers() if one["spec"]["endpoint"] == "chat"]
        return dict(worker["measured"] or {})

    wait_until(measured, "the start's log was read", seconds=20)
    found = measured()
    assert found["engine"].startswith("sha256:")
    assert found["engine"] == containers.client.get("/api/host").json()["engine"]
    assert found["kv_cache_mib"] == 1024
    assert found["kv_cache_tokens"] >= found["max_model_len"] > 0
    assert found["weights_mib"] is found["used_mib"] is None, (
        "on CPUs it says nothing of the weights, and there is no NVML"
    )

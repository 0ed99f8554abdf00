"""LoRA adapters with a real vLLM: loaded while it runs, each with an effect of its own."""

from typing import Any

import pytest

from tests.engine.conftest import START_SECONDS, client
from tests.support.adapters import adapter_folder
from tests.support.compose import ComposeStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(START_SECONDS + 40)


def said(stack: ComposeStack, model: str) -> tuple[str, str]:
    """What a model says greedily, and under which name."""
    with client(stack) as user:
        answer = user.completions.create(model=model, prompt="The sea is", max_tokens=12, temperature=0)
    return answer.choices[0].text, answer.model


def add(stack: ComposeStack, name: str) -> None:
    body = {"name": name, "model": f"local/{name}"}
    stack.client.post("/api/endpoints/chat/adapters", json=body).raise_for_status()


def test_adapters_come_and_go_while_vllm_runs_and_a_broken_one_says_why(containers: ComposeStack) -> None:
    local = containers.models / "local"
    for name, seed in (("red", 1), ("blue", 2), ("broken", 3)):
        adapter_folder(local / name, seed=seed)
    weights = local / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    answers = {"chat": said(containers, "chat")}
    (worker,) = (one["id"] for one in containers.status("chat")["workers"])
    for name in ("red", "blue"):
        add(containers, name)
        answers[name] = said(containers, name)
    assert [model for _, model in answers.values()] == ["chat", "red", "blue"]
    assert len({text for text, _ in answers.values()}) == 3
    add(containers, "broken")
    wait_until(lambda: state_of(containers, "broken")["state"] == "failed", "it was tried", seconds=30)
    assert state_of(containers, "broken")["reason"].startswith("Error while deserializing header")
    for name in ("blue", "broken"):
        assert containers.client.delete(f"/api/endpoints/chat/adapters/{name}").status_code == 204
    assert said(containers, "chat") == answers["chat"]
    assert said(containers, "red") == answers["red"]
    assert [one["id"] for one in containers.status("chat")["workers"]] == [worker], "nothing was started anew"
    mounts = containers.project.engines()[worker]["Mounts"]
    assert [mount["RW"] for mount in mounts if mount["Destination"] == "/run/engine/adapters"] == [False]


def state_of(stack: ComposeStack, adapter: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.status("chat")["adapters"][adapter]
    return found

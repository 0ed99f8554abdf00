"""Endpoints that say nothing of memory on two simulated GPUs: their models' files decide where and how they run."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine_simulator.configuration import Simulation
from tests.engine_simulator.configuration import write as write_simulation
from tests.support.model_headers import write
from tests.support.processes import REPOSITORY, short_folder
from tests.support.stack import Stack, chat, running_stack
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

CHAT = "/v1/chat/completions"
TOTAL_MIB = 8192
QUICK = Simulation(load_seconds=0.1, answer_tokens=4)
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
"""About 1.2 GiB of weights, and 16 KiB of cache for each token."""
LARGE = {**SMALL, "num_hidden_layers": 56}
"""About 6.6 GiB: with all the engine needs more than one card."""
HUGE = {**SMALL, "num_hidden_layers": 320}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        host = SimulatedHost.create(folder / "gpus", cards(2, TOTAL_MIB))
        settings = {
            "HOSTLER_DEVICE": "cuda",
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}",
            **host.env,
        }
        with running_stack(settings) as running:
            yield running


@pytest.fixture(autouse=True)
def clean(stack: Stack) -> Iterator[None]:
    yield
    for name in (one["name"] for one in stack.client.get("/api/endpoints").json()):
        stack.client.delete(f"/api/endpoints/{name}")
    wait_until(lambda: not stack.workers(), "all workers are gone", seconds=20)


def put(stack: Stack, name: str, config: dict[str, Any]) -> None:
    folder = write(stack.models / "local" / name, config)
    write_simulation(folder, QUICK)


def spec_of(stack: Stack, name: str) -> dict[str, Any]:
    [worker] = [found["spec"] for found in stack.workers() if found["spec"]["endpoint"] == name]
    return dict(worker)


def test_models_share_cards_by_what_their_files_say_they_need(stack: Stack) -> None:
    names = ("one", "two", "three")
    for name in names:
        put(stack, name, SMALL)
        stack.register(name, f"local/{name}")
    memory = stack.status("one")["memory"]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(stack.ask, names))
    assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
    specs = [spec_of(stack, name) for name in names]
    assert sorted(Counter(spec["gpus"][0] for spec in specs).values()) == [1, 2]
    assert (memory["source"], memory["gpus"], memory["is_cut"]) == ("derived", 1, False)
    assert all(memory["least_mib"] <= spec["gpu_memory_mib"] <= memory["most_mib"] for spec in specs)
    parts = ("weights_mib", "kv_cache_mib", "activations_mib", "graphs_mib", "other_mib")
    assert sum(memory[part] for part in parts) == memory["least_mib"]


def test_a_context_too_long_for_the_cards_is_cut_and_one_too_large_for_one_card_gets_both(stack: Stack) -> None:
    put(stack, "long", {**SMALL, "max_position_embeddings": 1_000_000})
    put(stack, "large", LARGE)
    stack.register("long", "local/long")
    assert stack.ask("long").status_code == 200
    spec = spec_of(stack, "long")
    assert (len(spec["gpus"]), spec["is_length_chosen"]) == (1, True)
    assert 100_000 < spec["max_model_len"] < 500_000
    stack.client.delete("/api/endpoints/long")
    stack.register("large", "local/large")
    assert stack.ask("large").status_code == 200
    assert len(spec_of(stack, "large")["gpus"]) == 2


def test_a_model_that_cannot_fit_is_refused_with_the_arithmetic(stack: Stack) -> None:
    put(stack, "huge", HUGE)
    answer = stack.client.post("/api/endpoints", json={"name": "huge", "model": "local/huge"})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "weights " in message
    assert "KV cache " in message
    assert "on each of 2 GPUs" in message
    assert "of these cards the smallest 7680 MiB can be promised" in message


def test_files_that_turn_out_too_large_later_fail_the_endpoint_and_its_requests_at_once(stack: Stack) -> None:
    put(stack, "grown", SMALL)
    stack.register("grown", "local/grown")
    put(stack, "grown", HUGE)
    wait_until(lambda: stack.status("grown")["state"] == "failed", "the files are read again")
    assert "The model cannot fit: weights" in stack.status("grown")["reason"]
    answer = stack.client.post(CHAT, json=chat("grown"))
    assert answer.status_code == 503
    assert "The model cannot fit: weights" in answer.json()["error"]["message"]
    put(stack, "grown", SMALL)
    wait_until(lambda: stack.ask("grown").status_code == 200, "the files are read again")


def test_what_a_start_has_shown_sizes_the_next_one_also_after_a_restart_of_the_gateway(stack: Stack) -> None:
    folder = write(stack.models / "local" / "lean", SMALL)
    lean = Simulation(load_seconds=0.1, answer_tokens=4, weights_mib=1_100, engine_mib=200, kv_kib_per_token=16)
    write_simulation(folder, lean)
    stack.register("lean", "local/lean")
    assert stack.status("lean")["memory"]["source"] == "derived"
    estimate = stack.status("lean")["memory"]["least_mib"]
    assert stack.ask("lean").status_code == 200
    wait_until(lambda: stack.status("lean")["memory"]["source"] == "learned", "the start's log was read")
    [worker] = [found for found in stack.workers() if found["spec"]["endpoint"] == "lean"]
    assert worker["measured"]["weights_mib"] == 1_100
    assert worker["measured"]["graphs_mib"] == 103, "0.1 GiB, as vLLM rounds it"
    assert worker["measured"]["used_mib"] <= worker["spec"]["gpu_memory_mib"]
    memory = stack.status("lean")["memory"]
    assert memory["weights_mib"] == 1_100
    assert memory["least_mib"] < estimate
    assert stack.gateway is not None
    stack.gateway.stop()
    stack.start_gateway()
    wait_until(stack.is_ready, "the gateway is ready again")
    assert stack.status("lean")["memory"] == memory
    stack.client.post("/api/endpoints/lean/stop")
    wait_until(lambda: not stack.workers(), "its worker is gone", seconds=20)
    assert stack.ask("lean").status_code == 200
    assert memory["least_mib"] <= spec_of(stack, "lean")["gpu_memory_mib"] <= memory["most_mib"]


def test_while_no_gpu_can_be_seen_workers_serve_on_and_what_is_registered_waits_for_one(stack: Stack) -> None:
    for name in ("seen", "unseen"):
        put(stack, name, SMALL)
    stack.register("seen", "local/seen")
    assert stack.ask("seen").status_code == 200
    before = spec_of(stack, "seen")
    with ThreadPoolExecutor(1) as pool:
        with SimulatedHost(Path(stack.env["HOSTLER_SIMULATED_GPUS"])).failing():
            wait_until(lambda: not stack.client.get("/api/host").json()["gpus"], "they are gone")
            stack.register("unseen", "local/unseen")
            waiting = pool.submit(stack.ask, "unseen")
            wait_until(lambda: "no GPU of this machine can be seen now" in stack.status("unseen")["reason"], "it waits")
            assert stack.ask("seen").status_code == 200
        assert waiting.result().status_code == 200
    assert len(spec_of(stack, "unseen")["gpus"]) == 1
    assert spec_of(stack, "seen") == before

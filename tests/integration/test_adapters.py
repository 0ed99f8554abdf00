"""LoRA adapters through gateway, manager and engine: loaded while the engine runs, addressed as models."""

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.adapters import adapter_folder
from tests.support.stack import Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until
from worker_manager.contract import ObservedSet, ObservedWorker, WorkerState

BASE = "writer"
CHANGES = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as found:
        for name, seed in (("red", 1), ("blue", 2), ("green", 3)):
            adapter_folder(found.models / "local" / name, seed=seed)
        found.endpoint(BASE, adapters={"red": {"model": "local/red"}, "org/blue": {"model": "local/blue"}})
        yield found


def user(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, timeout=30, max_retries=0)


def say(stack: Stack, model: str, prompt: str = "Tell me of the sea") -> tuple[str, str]:
    """What a model answers, and under which name."""
    with user(stack) as client:
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
    return answer.choices[0].message.content or "", answer.model


def worker(stack: Stack) -> str:
    (found,) = (one["id"] for one in stack.status(BASE)["workers"])
    return str(found)


def add(stack: Stack, **fields: Any) -> httpx.Response:
    return stack.client.post(f"/api/endpoints/{BASE}/adapters", json=fields)


def state_of(stack: Stack, adapter: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.status(BASE)["adapters"][adapter]
    return found


@contextlib.contextmanager
def hanging(file: Path) -> Iterator[None]:
    """Whoever reads this file hangs, as with a disk that does not answer; somebody does when this begins."""
    text, pipe = file.read_text(), file.with_suffix(".pipe")
    os.mkfifo(pipe)
    pipe.rename(file)

    def opened() -> int:
        with contextlib.suppress(OSError):  # nobody reads it yet
            return os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        return 0

    held = wait_until(opened, "it is being read")
    try:
        yield
    finally:
        pipe.write_text(text)
        pipe.rename(file)
        with contextlib.suppress(BrokenPipeError):  # nobody waits any more
            os.write(held, text.encode())
        os.close(held)


def test_two_adapters_and_their_base_answer_from_one_worker(stack: Stack) -> None:
    answers = {name: say(stack, name) for name in (BASE, "red", "org/blue")}
    assert len({text for text, _ in answers.values()}) == 3, "each has an answer of its own"
    assert [name for _, name in answers.values()] == [BASE, "red", "org/blue"]
    assert set(stack.engine_stats(worker(stack))["adapters"]) == {"red", "org/blue"}
    assert state_of(stack, "red") == {
        "state": "ready",
        "reason": "",
        "workers": [worker(stack)],
        "rank": 8,
        "size_mib": 1,
    }


def test_a_stream_of_an_adapter_that_is_asked_first_waits_until_it_is_loaded(stack: Stack) -> None:
    adapter_folder(stack.models / "local" / "slow", seed=9)
    stack.behave(BASE, Simulation(lora_load_seconds=0.5))
    assert add(stack, name="slow", model="local/slow").status_code == 202
    body = chat("slow", stream=True)
    with ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(stack.client.post, "/v1/chat/completions", json=body)
        base = pool.submit(stack.ask, BASE)
        assert base.result().status_code == 200, "the base does not wait for it"
        assert '"model":"slow"' in streamed.result().text
    assert streamed.result().text.rstrip().endswith("data: [DONE]")
    stack.behave(BASE, Simulation())
    assert stack.client.delete(f"/api/endpoints/{BASE}/adapters/slow").status_code == 204


def test_an_adapter_comes_and_goes_without_a_restart(stack: Stack) -> None:
    say(stack, BASE)
    before = stack.engine_stats(worker(stack))["pid"]
    told = add(stack, name="green", model="local/green")
    assert told.status_code == 202, told.text
    assert told.json()["lora"] == {"max_rank": 16, "max_loras": 4, "max_cpu_loras": 16}
    green = say(stack, "green")[0]
    assert green not in {say(stack, name)[0] for name in (BASE, "red", "org/blue")}
    assert stack.client.delete(f"/api/endpoints/{BASE}/adapters/green").status_code == 204
    assert stack.ask("green").status_code == 404
    wait_until(lambda: "green" not in stack.engine_stats(worker(stack))["adapters"], "it is unloaded")
    assert stack.engine_stats(worker(stack))["pid"] == before


def test_other_files_under_the_same_name_are_loaded_in_its_place(stack: Stack) -> None:
    adapter_folder(stack.models / "local" / "fresh", seed=20)
    add(stack, name="fresh", model="local/fresh")
    first, path = say(stack, "fresh")[0], stack.engine_stats(worker(stack))["adapters"]["fresh"]
    adapter_folder(stack.models / "local" / "fresh", seed=21)
    wait_until(lambda: say(stack, "fresh")[0] != first, "the new files answer", interval=0.1)
    # vLLM keys its prefix cache by the path: another one keeps it from what the old weights have computed
    assert stack.engine_stats(worker(stack))["adapters"]["fresh"] != path
    stack.client.delete(f"/api/endpoints/{BASE}/adapters/fresh")


def test_a_disk_that_hangs_under_an_adapter_stops_nobody_and_the_adapter_answers_on(stack: Stack) -> None:
    hub, commit = stack.models / "hub" / "org" / "far", "0123456789abcdef"
    adapter_folder(hub / commit, seed=30)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    assert add(stack, name="far", model="org/far").status_code == 202
    answer = say(stack, "far")
    with hanging(hub / "refs" / "main"):
        assert stack.client.get("/livez").status_code == 200
        assert say(stack, "far") == answer
        assert say(stack, BASE) != answer
        assert state_of(stack, "far")["state"] == "ready", "as it was when its files were last read"
        assert stack.gateway is not None
        stack.gateway.signal(signal.SIGTERM)
        assert stack.gateway.wait() == 0, "its end waits for no disk"
        stack.gateway.stop()
    stack.start_gateway()
    wait_until(stack.is_ready, "the gateway is ready")
    assert stack.client.delete(f"/api/endpoints/{BASE}/adapters/far").status_code == 204


def test_a_restarted_worker_has_its_adapters_again(stack: Stack) -> None:
    red = say(stack, "red")[0]
    before = stack.engine_stats(worker(stack))["pid"]
    stack.kill_engine(worker(stack))
    wait_until(lambda: state_of(stack, "red")["state"] != "ready", "it is gone with its engine")
    assert say(stack, "red")[0] == red
    assert stack.engine_stats(worker(stack))["pid"] != before
    wait_until(lambda: state_of(stack, "org/blue")["state"] == "ready", "the other one is back too")


def asked(stack: Stack, path: str) -> int:
    """How often the engine was asked on this path."""
    return int(stack.engine_stats(worker(stack))["paths"].get(path, 0))


def told(stack: Stack, one: str) -> tuple[int, ObservedWorker | None]:
    """What the manager tells, asked beside the gateway: which desired set it took last, and this worker."""
    transport = httpx.HTTPTransport(uds=str(stack.run / "manager" / "manager.sock"))
    with httpx.Client(transport=transport, base_url="http://manager", timeout=30) as client:
        answer = client.get("/observed")
    if not answer.is_success:  # it has not listed yet what there is
        return 0, None
    seen = msgspec.json.decode(answer.content, type=ObservedSet)
    return seen.generation, next((each for each in seen.workers if each.spec.id == one), None)


def serves(stack: Stack, one: str) -> ObservedWorker | None:
    """The worker as the manager tells it, once it says that it serves."""
    _, found = told(stack, one)
    return found if found is not None and found.state is WorkerState.READY else None


def test_a_new_manager_finds_what_is_loaded_loads_nothing_twice_and_unloads_nothing_before_it_is_told(
    stack: Stack,
) -> None:
    """The gateway is slower than the manager here, as it may be: it stands still until the engine was asked."""
    red, blue = say(stack, "red"), say(stack, "org/blue")
    one = worker(stack)
    before = {path: asked(stack, path) for path in CHANGES}
    looks = stack.engine_stats(one)["paths"]["/v1/models"]
    assert stack.manager is not None
    assert stack.gateway is not None
    stack.manager.kill()
    stack.manager.stop()
    stack.gateway.signal(signal.SIGSTOP)
    try:
        stack.start_manager()
        wait_until(lambda: serves(stack, one), "the engine is found")
        # once for whether it serves, and once for what it has
        wait_until(lambda: stack.engine_stats(one)["paths"]["/v1/models"] > looks + 1, "the engine was asked")
        found = serves(stack, one)
        assert found is not None
        assert (found.is_unasked, found.adapters) == (True, ())
        assert set(stack.engine_stats(one)["adapters"]) >= {"red", "org/blue"}
    finally:
        stack.gateway.signal(signal.SIGCONT)
    wait_until(lambda: told(stack, one)[0] > 0, "the new manager was told what should be")
    assert (say(stack, "red"), say(stack, "org/blue")) == (red, blue)
    wait_until(lambda: state_of(stack, "red")["workers"] == [one], "it is found")
    assert {path: asked(stack, path) for path in CHANGES} == before


def test_a_broken_adapter_says_so_and_its_base_goes_on_serving(stack: Stack) -> None:
    say(stack, BASE)
    folder = adapter_folder(stack.models / "local" / "broken", seed=5)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # its header is whole, so that registration can't know
    assert add(stack, name="broken", model="local/broken").status_code == 202
    wait_until(lambda: state_of(stack, "broken")["state"] == "failed", "it is tried")
    assert state_of(stack, "broken")["reason"].startswith("Error while deserializing header")
    refused = stack.ask("broken")
    assert refused.status_code == 503
    assert "The adapter 'broken' of the endpoint 'writer' cannot be served: Error while" in refused.text
    assert int(refused.headers["retry-after"]) > 0
    assert say(stack, BASE)
    assert say(stack, "red")
    stack.client.delete(f"/api/endpoints/{BASE}/adapters/broken")


def test_what_can_never_fit_is_refused_when_it_is_added(stack: Stack) -> None:
    local = stack.models / "local"
    adapter_folder(local / "dora", use_dora=True)
    adapter_folder(local / "huge", rank=1024)
    (adapter_folder(local / "empty") / "adapter_model.safetensors").unlink()
    answers = {
        name: add(stack, name=name, model=f"local/{name}") for name in ("dora", "huge", "empty", "missing", BASE)
    }
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 400)
    words = {name: answer.json()["error"]["message"] for name, answer in answers.items()}
    assert "vLLM does not load it (it is a DoRA adapter)" in words["dora"]
    assert "rank 1024 is above what engines take (512)" in words["huge"]
    assert "has no adapter_model.safetensors" in words["empty"]
    assert "There is no folder 'local/missing' under the models folder" in words["missing"]


def test_names_of_adapters_are_nobody_elses(stack: Stack) -> None:
    stack.endpoint("other", aliases=["another"])
    for taken in ("other", "another"):
        assert add(stack, name=taken, model="local/green").status_code == 409
    assert add(stack, name=BASE, model="local/green").status_code == 400
    clash = stack.client.post("/api/endpoints", json={"name": "red", "model": "local/other"})
    assert clash.status_code == 409
    assert "taken by an adapter of the endpoint 'writer'" in clash.text
    clash = stack.client.patch("/api/endpoints/other", json={"aliases": ["org/blue"]})
    assert clash.status_code == 409
    stack.client.delete("/api/endpoints/other")


def test_adapters_are_models_of_their_endpoint_to_whoever_may_use_it(stack: Stack) -> None:
    say(stack, "red")
    stack.endpoint("private")
    made = stack.client.post(
        "/api/keys", json={"name": "guest", "scopes": ["inference"], "endpoints": ["private"]}
    ).json()["key"]
    mine = {model["id"]: model for model in stack.client.get("/v1/models").json()["data"]}
    assert (mine["red"]["parent"], mine["red"]["root"]) == (BASE, "local/red")
    assert (mine[BASE]["parent"], mine[BASE]["root"]) == (None, None)
    assert mine["red"]["hostler"]["state"] == "hot"
    assert stack.client.get("/v1/models/org/blue").json()["parent"] == BASE
    guest = httpx.Client(base_url=stack.address, headers=bearer(made), timeout=30)
    with guest:
        assert [model["id"] for model in guest.get("/v1/models").json()["data"]] == ["private"]
        assert guest.post("/v1/chat/completions", json=chat("red")).status_code == 404
    stack.client.delete("/api/endpoints/private")


def test_nobody_reaches_the_engines_own_routes(stack: Stack) -> None:
    body = {"lora_name": "x", "lora_path": "/etc"}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert stack.client.post(path, json=body).status_code == 404


def test_more_room_than_the_engine_has_is_a_change_of_how_it_is_served(stack: Stack) -> None:
    adapter_folder(stack.models / "local" / "wide", rank=32, seed=30)
    stack.endpoint("roomy", adapters={"one": {"model": "local/red"}})
    assert say(stack, "one")
    (before,) = (each["id"] for each in stack.status("roomy")["workers"])
    refused = stack.client.patch(
        "/api/endpoints/roomy",
        json={"adapters": {"wide": {"model": "local/wide"}}, "lora": {"max_rank": 16, "max_loras": 2}},
    )
    assert refused.status_code == 400
    assert "rank 32 and lora.max_rank is 16" in refused.text
    added = stack.client.post("/api/endpoints/roomy/adapters", json={"name": "wide", "model": "local/wide"})
    assert added.json()["lora"]["max_rank"] == 32
    assert say(stack, "wide")[1] == "wide"
    wait_until(lambda: before not in {each["id"] for each in stack.status("roomy")["workers"]}, "the old one is gone")
    assert say(stack, "one")[1] == "one"
    stack.client.delete("/api/endpoints/roomy")

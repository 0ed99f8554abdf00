import dataclasses
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine_simulator.configuration import LOOK_AGAIN_SECONDS, Faults, Simulation, write
from tests.support.processes import running, short_folder
from tests.support.simulated_engine import SimulatedEngine, model_folder, running_engine, serve_command
from tests.support.waiting import wait_until

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Tell me of the sea."}]}


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture
def engine(folder: Path) -> Iterator[SimulatedEngine]:
    with running_engine(folder) as started:
        yield started


@pytest.fixture
def client(engine: SimulatedEngine) -> Iterator[httpx.Client]:
    with engine.client() as made:
        yield made


def chat(client: httpx.Client, **more: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={**CHAT, **more})


def test_an_unknown_flag_exits_with_2_as_argparse_does(folder: Path) -> None:
    with running(serve_command(model_folder(folder / "m"), folder / "s", flags=["--no-such"])) as process:
        assert process.wait() == 2
        assert "vllm serve: error: unrecognized arguments: --no-such" in process.output


def test_a_folder_without_a_config_exits_with_1(folder: Path) -> None:
    with running(serve_command(folder, folder / "s")) as process:
        assert process.wait() == 1
        assert "directory containing a config.json file" in process.output


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("oom", 1, "torch.OutOfMemoryError: CUDA out of memory"),
        ("kv_cache", 1, "No available memory for the cache blocks"),
        ("missing_model", 1, "Can't load the configuration"),
        ("unsupported_arch", 1, "are not supported for now"),
        ("gated", 1, "gated repo"),
        ("driver", 1, "driver on your system is too old"),
        ("bad_flag", 2, "unrecognized arguments"),
        ("something else", 1, "simulated failure: something else"),
    ],
)
def test_a_crash_at_load_says_what_vllm_would_say(folder: Path, kind: str, status: int, words: str) -> None:
    model = model_folder(folder / "m", Simulation(faults=Faults(crash_at_load=kind)))
    with running(serve_command(model, folder / "s")) as process:
        assert process.wait() == status
        assert words in process.output


def test_a_kv_cache_too_small_for_the_length_fails_with_the_length_that_would_fit(folder: Path) -> None:
    model = model_folder(folder / "m", Simulation(kv_mib=1, kv_kib_per_token=16))
    with running(serve_command(model, folder / "s", flags=["--max-model-len", "4096"])) as process:
        assert process.wait() == 1
        assert "the estimated maximum model length is 64" in process.output


def test_a_slow_load_binds_the_socket_early_and_listens_late(folder: Path) -> None:
    model = model_folder(folder / "m", Simulation(faults=Faults(slow_load=60)))
    path = folder / "s"
    with running(serve_command(model, path)) as process:
        wait_until(path.exists, "the socket's path")
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(path))
        process.wait_for_output("Initializing")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize("stream", ["stream", ""], ids=["stream", "whole"])
def test_crash_after_requests_dies_in_the_middle_of_an_answer(folder: Path, stream: str) -> None:
    simulation = Simulation(faults=Faults(crash_after_requests=1))
    with running_engine(folder, simulation) as engine, engine.client() as client:
        assert chat(client).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            chat(client, stream=bool(stream))
        assert engine.process.wait() == 1
        assert "CUDA error" in engine.process.output


def test_hang_with_green_health_answers_everything_but_generation(folder: Path) -> None:
    simulation = Simulation(faults=Faults(hang_with_green_health=True))
    with running_engine(folder, simulation) as engine, engine.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=CHAT, timeout=0.2)
        assert client.get("/health").status_code == 200


def test_cut_stream_after_closes_in_the_middle_of_the_body(engine: SimulatedEngine, client: httpx.Client) -> None:
    engine.order(Simulation(faults=Faults(cut_stream_after=3)))
    lines: list[str] = []
    asked = client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True})
    with asked as answer, pytest.raises(httpx.RemoteProtocolError):
        lines.extend(line for line in answer.iter_lines() if line)
    assert len(lines) == 4  # the role, and three tokens
    engine.order(Simulation())
    assert chat(client).status_code == 200


def test_end_stream_without_done_ends_cleanly(engine: SimulatedEngine, client: httpx.Client) -> None:
    engine.order(Simulation(faults=Faults(end_stream_without_done=True)))
    text = chat(client, stream=True).text
    assert '"finish_reason":"stop"' in text
    assert "[DONE]" not in text


def test_stall_stream_after_says_nothing_more(engine: SimulatedEngine, client: httpx.Client) -> None:
    engine.order(Simulation(faults=Faults(stall_stream_after=3)))
    lines: list[str] = []
    asked = client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}, timeout=0.3)
    with asked as answer, pytest.raises(httpx.ReadTimeout):
        lines.extend(line for line in answer.iter_lines() if line)
    assert len(lines) == 4  # the role, and three tokens
    wait_until(lambda: engine.stats()["aborted"] == 1, "the abort")


@pytest.mark.parametrize("stream", ["stream", ""], ids=["stream", "whole"])
def test_a_garbage_answer_is_no_json_and_no_event(engine: SimulatedEngine, client: httpx.Client, stream: str) -> None:
    engine.order(Simulation(faults=Faults(garbage_answer=True)))
    answer = chat(client, stream=bool(stream))
    assert answer.status_code == 200
    assert b"not what you asked for" in answer.content


def test_a_garbage_protocol_is_no_http(engine: SimulatedEngine, client: httpx.Client) -> None:
    engine.order(Simulation(faults=Faults(garbage_answer="protocol")))
    with pytest.raises(httpx.RemoteProtocolError):
        chat(client)


def test_an_ordered_error_status_has_the_error_body_of_vllm(engine: SimulatedEngine, client: httpx.Client) -> None:
    engine.order(Simulation(faults=Faults(error_status=503)))
    answer = chat(client)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "ServiceUnavailableError")


def test_half_a_configuration_leaves_the_last_one_in_place(engine: SimulatedEngine, client: httpx.Client) -> None:
    engine.order(Simulation(answer_tokens=3))
    assert chat(client).json()["usage"]["completion_tokens"] == 3
    (engine.model / "simulator.json").write_text('{"answer_tokens": 5, "fau')
    order_seen = time.monotonic() + 2 * LOOK_AGAIN_SECONDS
    wait_until(lambda: time.monotonic() > order_seen, "the engine's next look at the file")
    assert chat(client).json()["usage"]["completion_tokens"] == 3


def test_faults_may_be_for_engines_that_run_already_and_not_for_their_successors(folder: Path) -> None:
    ordered = Simulation(faults=Faults(error_status=503), faulty_before=time.time())
    with running_engine(folder, ordered) as engine, engine.client() as client:
        assert chat(client).status_code == 200
        write(engine.model, dataclasses.replace(ordered, faulty_before=time.time()))
        wait_until(lambda: chat(client).status_code == 503, "the fault")

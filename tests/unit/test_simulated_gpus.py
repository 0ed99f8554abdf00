import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.processes import REPOSITORY, RunningProcess, running, short_folder
from tests.support.simulated_engine import SimulatedEngine, model_folder, running_engine, serve_command
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.claims import read_cards, visible_cards
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

CARDS = cards(2, memory_total_mib=24_576)
FIRST, SECOND = CARDS[0].uuid, CARDS[1].uuid
READ_NVML = """
import json, pynvml as nvml
nvml.nvmlInit()
cards = []
for index in range(nvml.nvmlDeviceGetCount()):
    card = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, exact = nvml.nvmlDeviceGetMemoryInfo(card), nvml.nvmlDeviceGetMemoryInfo(card, version=nvml.nvmlMemory_v2)
    assert (memory.total, memory.used, memory.free) == (exact.total, exact.used, exact.free)
    uuid = nvml.nvmlDeviceGetUUID(card)
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
    users = nvml.nvmlDeviceGetComputeRunningProcesses(card)
    assert len(nvml.nvmlDeviceGetComputeRunningProcesses_v2(card)) == len(users)
    cards.append({
        "uuid": uuid,
        "name": nvml.nvmlDeviceGetName(card),
        "total": memory.total >> 20,
        "used": memory.used >> 20,
        "users": [[user.pid, user.usedGpuMemory >> 20] for user in users],
        "capability": nvml.nvmlDeviceGetCudaComputeCapability(card),
        "utilization": nvml.nvmlDeviceGetUtilizationRates(card).memory,
        "power": nvml.nvmlDeviceGetPowerUsage(card),
        "energy": nvml.nvmlDeviceGetTotalEnergyConsumption(card),
    })
try:
    nvml.nvmlDeviceGetHandleByUUID("GPU-none")
except nvml.NVMLError_NotFound as error:
    missing = str(error)
print(json.dumps({"cards": cards, "driver": nvml.nvmlSystemGetDriverVersion(), "missing": missing}))
nvml.nvmlShutdown()
"""


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    """The stub is compiled once; hosts of single tests copy nothing but the cards."""
    with short_folder() as folder:
        yield SimulatedHost.create(folder, CARDS).folder


@pytest.fixture
def host(library: Path) -> SimulatedHost:
    return SimulatedHost.create(library, CARDS)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def on_card(host: SimulatedHost, card: str, **more: str) -> dict[str, str]:
    return {**host.env, "CUDA_VISIBLE_DEVICES": card, **more}


def read_nvml(host: SimulatedHost) -> dict[str, Any]:
    with running([sys.executable, "-c", READ_NVML], host.env) as process:
        assert process.wait() == 0, process.output
        answer: dict[str, Any] = json.loads(process.output)
    return answer


def failed_start(host: SimulatedHost, folder: Path, simulation: Simulation | None = None, *flags: str) -> str:
    model = model_folder(folder / "model", simulation)
    with running(serve_command(model, folder / "failed.sock", flags=flags), on_card(host, FIRST)) as process:
        assert process.wait() == 1
        return process.output


def test_nvml_shows_the_cards_of_the_folder(host: SimulatedHost) -> None:
    shown = read_nvml(host)
    assert [card["uuid"] for card in shown["cards"]] == [FIRST, SECOND]
    assert [card["total"] for card in shown["cards"]] == [24_576, 24_576]
    assert [card["used"] for card in shown["cards"]] == [0, 0]
    assert shown["cards"][0]["name"] == "NVIDIA Simulated 24GB"
    assert shown["cards"][0]["capability"] == [9, 0]
    assert shown["driver"].count(".") == 2
    assert shown["missing"] == "Not Found"


def test_nvml_shows_who_holds_memory_and_forgets_the_dead(host: SimulatedHost, folder: Path) -> None:
    with running_engine(folder, flags=["--gpu-memory-utilization", "0.5"], env=on_card(host, SECOND)) as engine:
        shown = read_nvml(host)["cards"]
        assert shown[0]["users"] == []
        assert shown[1]["users"] == [[engine.process.pid, 12_288]]
        assert shown[1]["utilization"] == 50
        engine.process.kill()
        shown = read_nvml(host)["cards"]
        assert (shown[1]["users"], shown[1]["used"]) == ([], 0)
        assert host.live_claims() == []


def test_nvml_shows_the_memory_of_other_programs(host: SimulatedHost) -> None:
    host.add_foreign(FIRST, 3000, pid=77)
    held = host.hold(FIRST, 500)
    assert [77, 3000] in read_nvml(host)["cards"][0]["users"]
    assert host.used_mib(FIRST) == read_nvml(host)["cards"][0]["used"] == 3500
    held.release()
    host.clear_foreign()
    assert read_nvml(host)["cards"][0]["used"] == 0


def test_memory_that_is_not_given_back_stays_in_use_without_its_process(host: SimulatedHost, folder: Path) -> None:
    flags = ["--gpu-memory-utilization", "0.5"]
    with running_engine(folder, flags=flags, env=on_card(host, FIRST)) as engine:
        host.linger(engine.process.pid, time.time() + 600)
        engine.process.kill()
        assert host.used_mib(FIRST) == read_nvml(host)["cards"][0]["used"] == 12_288
        assert "Free memory on device cuda:0 (12/24 GiB)" in failed_start(host, folder)
        host.linger(engine.process.pid, time.time() - 1)
        assert host.used_mib(FIRST) == read_nvml(host)["cards"][0]["used"] == 0


def test_nvml_without_a_host_says_that_there_is_no_driver(host: SimulatedHost, folder: Path) -> None:
    with running([sys.executable, "-c", READ_NVML], {**host.env, "HOSTLER_SIMULATED_GPUS": str(folder)}) as process:
        assert process.wait() == 1
        assert "NVMLError_DriverNotLoaded" in process.output


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, [FIRST, SECOND]),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": SECOND}, [SECOND]),
        ({"NVIDIA_VISIBLE_DEVICES": f"{SECOND},{FIRST}"}, [SECOND, FIRST]),
        ({"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "all"}, [SECOND]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-none"}, []),
    ],
)
def test_visible_cards_are_those_asked_for(host: SimulatedHost, environment: dict[str, str], seen: list[str]) -> None:
    assert read_cards(host.folder) == CARDS
    assert [card.uuid for card in visible_cards(host.folder, environment)] == seen


def test_an_engine_without_a_card_claims_nothing(host: SimulatedHost, folder: Path) -> None:
    with running_engine(folder, env=host.env):
        assert host.live_claims() == []


def test_a_second_engine_that_does_not_fit_fails_as_vllm_does(host: SimulatedHost, folder: Path) -> None:
    with running_engine(folder, flags=["--gpu-memory-utilization", "0.6"], env=on_card(host, FIRST)):
        output = failed_start(host, folder, None, "--gpu-memory-utilization", "0.5")
        assert host.used_mib(FIRST) == pytest.approx(0.6 * 24_576, abs=1)
    assert (
        "ValueError: Free memory on device cuda:0 (9.6/24 GiB) on startup is less than desired GPU memory utilization "
        "(0.5, 12 GiB). Decrease GPU memory utilization" in output
    )


def test_claiming_more_than_the_card_has_is_out_of_memory(host: SimulatedHost, folder: Path) -> None:
    output = failed_start(host, folder, Simulation(claim_mib=30_000))
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 29.3 GiB." in output
    assert host.live_claims() == []


def test_weights_that_leave_no_room_for_a_kv_cache_fail_as_vllm_does(host: SimulatedHost, folder: Path) -> None:
    output = failed_start(host, folder, Simulation(weights_mib=23_000))
    assert "No available memory for the cache blocks" in output


def test_an_exact_kv_cache_decides_the_claim(host: SimulatedHost, folder: Path) -> None:
    flags = ["--kv-cache-memory-bytes", str(2 << 30)]
    with running_engine(folder, Simulation(weights_mib=1000), flags=flags, env=on_card(host, FIRST)) as engine:
        assert host.used_mib(FIRST) == 1000 + 300 + 2048
        assert "reserved 2.00 GiB memory for KV Cache as specified" in engine.process.output


def test_tensor_parallelism_claims_every_card_and_fails_with_too_few(host: SimulatedHost, folder: Path) -> None:
    flags = ["--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.25"]
    with running_engine(folder, flags=flags, env=on_card(host, f"{FIRST},{SECOND}")):
        assert [host.used_mib(uuid) for uuid in (FIRST, SECOND)] == [6144, 6144]
    assert "World size (2) is larger than the number of available GPUs (1)" in failed_start(host, folder, None, *flags)


def test_of_many_engines_at_once_only_those_that_fit_start(host: SimulatedHost, folder: Path) -> None:
    model = model_folder(folder / "model")
    flags = ["--gpu-memory-utilization", "0.4"]
    processes = [
        RunningProcess(serve_command(model, folder / f"{index}.sock", flags=flags), on_card(host, FIRST))
        for index in range(5)
    ]
    try:
        wait_until(lambda: sum(process.exit_code == 1 for process in processes) == 3, "three refusals")
        assert host.used_mib(FIRST) == pytest.approx(0.8 * 24_576, abs=1)
    finally:
        for process in processes:
            process.stop()


@pytest.fixture
def sleeper(host: SimulatedHost, folder: Path) -> Iterator[SimulatedEngine]:
    env = on_card(host, FIRST, VLLM_SERVER_DEV_MODE="1")
    with running_engine(folder, Simulation(), flags=["--enable-sleep-mode"], env=env) as engine:
        yield engine


def test_sleep_gives_the_memory_back_and_wake_up_takes_it_again(host: SimulatedHost, sleeper: SimulatedEngine) -> None:
    full = host.used_mib(FIRST)
    with sleeper.client() as client:
        before = _completion(client)
        assert client.post("/sleep?level=1").json() == {"status": "sleeping", "level": 1}
        assert host.used_mib(FIRST) == 1228.8
        assert client.get("/is_sleeping").json() == {"is_sleeping": True}
        assert 'sleep_state="weights_offloaded"} 1.0' in client.get("/metrics").text
        assert client.post("/wake_up").json()["status"] == "awake"
        assert host.used_mib(FIRST) == full
        assert client.get("/is_sleeping").json() == {"is_sleeping": False}
        assert _completion(client) == before


def test_level_2_needs_its_weights_again_before_it_answers_as_before(sleeper: SimulatedEngine) -> None:
    with sleeper.client() as client:
        before = _completion(client)
        client.post("/sleep?level=2")
        assert client.post("/wake_up?tags=weights").json()["status"] == "sleeping"
        client.post("/wake_up?tags=kv_cache")
        assert _completion(client) != before
        client.post("/collective_rpc", json={"method": "reload_weights"})
        assert _completion(client) == before


def test_a_request_to_a_sleeping_engine_kills_it(sleeper: SimulatedEngine) -> None:
    with sleeper.client() as client:
        client.post("/sleep")
        with pytest.raises(Exception, match="disconnected"):
            _completion(client)
        assert sleeper.process.wait() == 1


def test_waking_where_somebody_took_the_memory_kills_the_engine(host: SimulatedHost, sleeper: SimulatedEngine) -> None:
    with sleeper.client() as client:
        client.post("/sleep")
        host.add_foreign(FIRST, 20_000)
        with pytest.raises(Exception, match="disconnected"):
            client.post("/wake_up")
        assert sleeper.process.wait() == 1
        assert "torch.OutOfMemoryError" in sleeper.process.output


def test_the_sleep_faults_refuse_it_or_keep_the_memory(host: SimulatedHost, folder: Path) -> None:
    env = on_card(host, FIRST, VLLM_SERVER_DEV_MODE="1")
    for faults, status in ((Faults(refuse_sleep=True), 500), (Faults(memory_not_returned=True), 200)):
        with running_engine(folder, Simulation(faults=faults), flags=["--enable-sleep-mode"], env=env) as engine:
            full = host.used_mib(FIRST)
            with engine.client() as client:
                assert client.post("/sleep").status_code == status
                assert host.used_mib(FIRST) == full
            engine.process.signal(signal.SIGTERM)
            assert engine.process.wait() == 0
            engine.socket.unlink(missing_ok=True)


def test_sleep_mode_without_a_gpu_is_refused_at_the_start(host: SimulatedHost, folder: Path) -> None:
    model = model_folder(folder / "model")
    with running(serve_command(model, folder / "s", flags=["--enable-sleep-mode"]), host.env) as process:
        assert process.wait() == 1
        assert "Sleep mode is not supported on current platform" in process.output


def test_the_hook_does_nothing_on_a_machine_without_a_simulated_host(folder: Path) -> None:
    hook = (REPOSITORY / "tests" / "testbed" / "nvidia_hook_stand_in").read_text()
    assert "\nHOST=/var/lib/hostler-simulated-gpus\n" in hook
    elsewhere = hook.replace("HOST=/var/lib/hostler-simulated-gpus", f"HOST={folder}")
    with running(["sh", "-c", elsewhere]) as process:  # with an empty state on stdin
        assert (process.wait(), process.output) == (0, "")


def _completion(client: Any) -> str:
    answer = client.post("/v1/completions", json={"model": "demo", "prompt": "Once upon a time"})
    text: str = answer.json()["choices"][0]["text"]
    return text

"""The real manager process on its Unix socket, with the process launcher and the engine simulator."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from tests.support.battery import Tell, hold, size
from tests.support.machine import MANAGER_SECONDS, STOP_SECONDS, Machine, is_running, spec
from tests.support.processes import RunningProcess, python_module, short_folder
from tests.support.waiting import wait_until
from worker_manager.contract import DesiredSet, FailureKind, LogTail, WorkerState

T = TypeVar("T")
LOAD_SECONDS = 2
LATE_SECONDS = 1.0
ENDS_SECONDS = 2.0
DEATHS = size(1, 5)
"""How many are waited for; the fifth is the last, after two and a half minutes."""
OFF = 0.25
"""How far a delay may be from 10 s doubling with each death, as a share."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with short_folder() as folder:
        host = Machine(folder)
        host.add_model()
        yield host
        host.clean_up()


def in_thread(work: Callable[[], T]) -> Callable[[], T]:
    """Run it beside the test; the returned function waits for its result."""
    box: list[T] = []
    thread = threading.Thread(target=lambda: box.append(work()))
    thread.start()

    def result() -> T:
        thread.join(MANAGER_SECONDS)
        return box[0]

    return result


def test_a_desired_worker_becomes_ready_answers_and_goes_when_it_is_no_longer_desired(machine: Machine) -> None:
    machine.start()
    assert machine.send(spec()).json()["generation"] == 1
    ready = machine.wait_for(WorkerState.READY)
    assert ready.socket == "w1/engine.sock"
    assert machine.ask_engine() == 200
    pid = machine.pid()
    machine.send()
    machine.wait_until_gone()
    wait_until(lambda: not is_running(pid), "engine gone")
    assert not (machine.folder / "run" / "engines" / "w1").exists()
    assert machine.observed().generation == 2


def test_a_killed_engine_is_noticed_within_a_second_and_comes_back_at_once_but_backs_off_the_next_time(
    machine: Machine,
) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    before = machine.pid()
    os.kill(before, signal.SIGKILL)
    machine.wait_for_restarts(1, seconds=1.0)
    again = machine.wait_for(WorkerState.READY, seconds=8)
    assert again.failure is not None
    assert again.failure.kind is FailureKind.KILLED
    assert machine.pid() != before
    os.kill(machine.pid(), signal.SIGKILL)
    dead = machine.wait_for(WorkerState.BACKOFF, seconds=1.0)
    assert dead.restarts == 2
    assert dead.retry_at is not None
    assert 10 < dead.retry_at - time.time() < 23


def test_a_killed_manager_leaves_its_engines_alone_and_adopts_them_when_it_is_back(machine: Machine) -> None:
    manager = machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    pid, first = machine.pid(), machine.observed().manager
    manager.kill()
    assert machine.ask_engine() == 200
    machine.start()
    seen = machine.observed()
    assert (seen.generation, seen.manager != first) == (0, True)
    assert [each.state for each in seen.workers] == [WorkerState.READY]
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    assert (machine.pid(), machine.observed().workers[0].restarts) == (pid, 0)


def test_an_adopted_engine_that_dies_is_noticed_too(machine: Machine) -> None:
    manager = machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    manager.kill()
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    os.kill(machine.pid(), signal.SIGKILL)
    machine.wait_for_restarts(1, seconds=1.0)


def test_an_unknown_worker_is_stopped_once_the_gateway_has_spoken(machine: Machine) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    pid = machine.pid()
    assert machine.manager is not None
    machine.manager.kill()
    machine.start()
    assert machine.observed().workers[0].state is WorkerState.READY
    machine.send(spec("w2"))
    machine.wait_until_gone()
    machine.wait_for(WorkerState.READY, "w2")
    assert not is_running(pid)


def test_a_changed_spec_replaces_the_worker(machine: Machine) -> None:
    machine.start()
    machine.send(spec())
    first = machine.wait_for(WorkerState.READY)
    pid = machine.pid()
    machine.send(spec(max_model_len=128))
    wait_until(
        lambda: (seen := machine.worker()) is not None and seen.spec_hash != first.spec_hash and seen.state == "ready",
        "the new spec is ready",
        seconds=MANAGER_SECONDS,
        interval=0.05,
    )
    assert machine.pid() != pid
    assert not is_running(pid)


def test_a_worker_that_policy_refuses_fails_at_once_and_recovers_with_another_spec(machine: Machine) -> None:
    machine.start()
    machine.send(spec(args={"trust-remote-code": True}))
    failed = machine.wait_for(WorkerState.FAILED)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.BAD_FLAG
    assert failed.restarts == 0
    machine.send(spec())
    machine.wait_for(WorkerState.READY)


def test_a_missing_model_fails_at_once_with_a_hint(machine: Machine) -> None:
    machine.start()
    machine.send(spec(model="local/absent"))
    failed = machine.wait_for(WorkerState.FAILED)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.MODEL_MISSING
    assert failed.failure.hint


def test_a_context_that_does_not_fit_is_shortened_once_where_nobody_asked_for_a_length(machine: Machine) -> None:
    machine.add_model("wide", kv_mib=64, kv_kib_per_token=16)
    machine.start()
    machine.send(spec(model="local/wide"))
    ready = machine.wait_for(WorkerState.READY)
    assert "max_model_len was lowered to 4000" in ready.reason
    assert ready.failure is not None
    assert ready.failure.kind is FailureKind.KV_CACHE_TOO_SMALL
    assert (ready.restarts, ready.shortened) == (1, 4000)
    assert "--max-model-len=4000" in Path(f"/proc/{machine.pid()}/cmdline").read_text()


def test_what_was_shortened_is_known_to_the_next_manager_and_to_the_next_worker(machine: Machine) -> None:
    machine.add_model("wide", kv_mib=64, kv_kib_per_token=16)
    manager = machine.start()
    machine.send(spec(model="local/wide"))
    machine.wait_for(WorkerState.READY)
    pid = machine.pid()
    manager.kill()
    machine.start()
    machine.send(spec(model="local/wide"))
    adopted = machine.wait_for(WorkerState.READY)
    assert (machine.pid(), adopted.shortened) == (pid, 4000)
    assert "max_model_len was lowered to 4000" in adopted.reason
    machine.send()
    machine.wait_until_gone()
    machine.send(spec("w2", model="local/wide"))
    again = machine.wait_for(WorkerState.READY, "w2")
    assert (again.restarts, again.shortened) == (0, 4000)


def test_a_length_that_was_asked_for_is_never_changed(machine: Machine) -> None:
    machine.add_model("wide", kv_mib=64, kv_kib_per_token=16)
    machine.start()
    machine.send(spec(model="local/wide", max_model_len=8000))
    failed = machine.wait_for(WorkerState.FAILED)
    assert failed.failure is not None
    assert "max_model_len to 4096 or less" in failed.failure.hint


def test_a_load_that_takes_too_long_is_cut_off(machine: Machine, record_property: Tell) -> None:
    machine.add_model("slow", load_seconds=60)
    machine.start(HOSTLER_LOAD_SECONDS=str(LOAD_SECONDS))
    machine.send(spec(model="local/slow"))
    loading = machine.wait_for(WorkerState.LOADING)
    late = machine.wait_for(WorkerState.BACKOFF)
    over = late.since - loading.since - LOAD_SECONDS
    hold(over, LATE_SECONDS, "it leaves LOADING after its deadline")
    record_property("left after its deadline", f"{over:.2f} s")
    assert late.failure is not None
    assert late.failure.kind is FailureKind.LOAD_TIMEOUT
    assert late.failure.log_tail, "what it said is kept"


def test_each_death_is_waited_out_twice_as_long_and_the_fifth_is_the_last(
    machine: Machine, record_property: Tell
) -> None:
    machine.add_model("crashing", faults={"crash_at_load": "free_memory"})
    machine.start()
    machine.send(spec(model="local/crashing"))
    for count in range(1, DEATHS + 1):
        if count == 5:
            machine.wait_for(WorkerState.FAILED, seconds=120)
            record_property("after death 5", "failed")
            break
        machine.wait_for_restarts(count, seconds=120)
        dead = machine.wait_for(WorkerState.BACKOFF)
        assert dead.retry_at is not None
        delay = dead.retry_at - dead.since
        assert abs(delay / (10 * 2 ** (count - 1)) - 1) <= OFF
        record_property(f"after death {count}", f"{delay:.0f} s")
    assert machine.manager is not None
    told = [json.loads(line) for line in machine.manager.output.splitlines()]
    starts = [datetime.fromisoformat(line["timestamp"]) for line in told if line["event"] == "worker_starts"]
    assert len(starts) == DEATHS
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(starts)]
    for count, gap in enumerate(gaps):
        assert gap >= 10 * 2**count * (1 - OFF)
        hold(gap, 10 * 2**count * (1 + OFF) + LATE_SECONDS, f"start {count + 2} after start {count + 1}")


def test_an_engine_that_has_given_up_its_load_and_hangs_is_ended_long_before_its_deadline_with_the_cause(
    machine: Machine,
) -> None:
    machine.add_model("full", faults={"crash_at_load": "cache_full"})
    machine.start(HOSTLER_LOAD_SECONDS="60")
    machine.send(spec(model="local/full"))
    late = machine.wait_for(WorkerState.BACKOFF)
    assert late.failure is not None
    assert late.failure.kind is FailureKind.DISK_FULL
    assert "HOSTLER_CACHE" in late.failure.hint
    assert any("No space left on device" in line for line in late.failure.log_tail)


def test_one_worker_that_stops_slowly_holds_up_no_other(machine: Machine, record_property: Tell) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    os.kill(machine.pid(), signal.SIGSTOP)  # it will not hear TERM
    began = time.monotonic()
    machine.send(spec("w2"))
    machine.wait_for(WorkerState.READY, "w2", seconds=4.5)
    machine.wait_until_gone()
    seconds = time.monotonic() - began
    hold(seconds, STOP_SECONDS + ENDS_SECONDS, "an engine that does not listen to TERM is gone")
    record_property(f"process, grace {STOP_SECONDS} s: gone after", f"{seconds:.1f} s")


def test_a_corrupt_unit_file_harms_no_other_worker(machine: Machine) -> None:
    manager = machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    pid = machine.pid()
    manager.kill()
    (machine.folder / "run" / "units" / "broken.json").write_text("{")
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    assert machine.pid() == pid
    wait_until(lambda: not (machine.folder / "run" / "units" / "broken.json").exists(), "broken unit removed")


def test_a_reused_process_id_is_not_taken_for_the_engine(machine: Machine) -> None:
    manager = machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    manager.kill()
    path = machine.folder / "run" / "units" / "w1.json"
    engine = machine.pid()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid()}))
    os.killpg(engine, signal.SIGKILL)
    machine.start()
    machine.send()
    machine.wait_until_gone()  # and this test process was not signalled


def test_the_long_poll_answers_as_soon_as_something_changes(machine: Machine) -> None:
    machine.start()
    version = machine.observed().version
    wait_until(lambda: machine.observed(machine.observed().version, 0.3) is not None, "quiet")
    version = machine.observed().version
    answer = in_thread(lambda: machine.observed(version, 20))
    machine.send(spec())
    assert answer().version > version


def test_an_older_desired_set_is_refused(machine: Machine) -> None:
    machine.start()
    assert machine.put(DesiredSet(generation=5)).status_code == 200
    refused = machine.put(DesiredSet(generation=4))
    assert refused.status_code == 409
    assert refused.json()["error"]["kind"] == "stale_generation"
    assert machine.put(DesiredSet(generation=5)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/desired", b"{", 400),
        ("PUT", "/desired", b'{"generation": 0}', 400),
        ("PUT", "/desired", b'{"generation": 1, "privileged": true}', 400),
        ("PUT", "/desired", b'{"generation": 1, "workers": [{"id": "../x"}]}', 400),
        ("PUT", "/desired", b'{"generation": 1, "residencies": {"w1": "gone"}}', 400),
        ("PUT", "/desired", b" " * (5 << 20), 413),
        ("GET", "/observed?after=x", b"", 400),
        ("GET", "/workers/nobody/log", b"", 404),
        ("DELETE", "/downloads/none", b"", 404),
        ("POST", "/downloads", b'{"model": "../x"}', 400),
        ("GET", "/nothing", b"", 404),
        ("POST", "/observed", b"", 405),
    ],
)
def test_a_bad_request_gets_the_one_error_shape(
    shared: Machine, method: str, path: str, body: bytes, status: int
) -> None:
    answer = shared.client.request(method, path, content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"kind", "message", "hint"}
    assert answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """One manager for requests that change nothing."""
    with short_folder() as folder:
        host = Machine(folder)
        host.start()
        yield host
        host.clean_up()


def test_a_workers_log_can_be_read(machine: Machine) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    tail = msgspec.json.decode(machine.client.get("/workers/w1/log?lines=5").content, type=LogTail)
    assert tail.worker == "w1"
    assert 0 < len(tail.lines) <= 5


def test_downloads_are_refused_offline_with_a_sentence(machine: Machine) -> None:
    machine.start(HOSTLER_OFFLINE="1")
    refused = machine.client.post("/downloads", json={"model": "org/name"})
    assert (refused.status_code, refused.json()["error"]["kind"]) == (409, "offline")


def test_a_second_manager_on_the_same_socket_refuses_to_start(machine: Machine) -> None:
    machine.start()
    second = RunningProcess(python_module("worker_manager"), machine.environment())
    assert second.wait(MANAGER_SECONDS) == 1
    assert "another worker manager answers" in second.output
    second.stop()
    assert machine.client.get("/livez").status_code == 204


def test_the_socket_is_for_the_group_alone(machine: Machine) -> None:
    machine.start()
    assert machine.socket.stat().st_mode & 0o777 == 0o660
    assert machine.socket.parent.stat().st_mode & 0o777 == 0o770


def test_a_run_folder_with_too_long_a_path_is_refused_with_what_to_do(machine: Machine) -> None:
    refused = RunningProcess(
        python_module("worker_manager"), machine.environment(HOSTLER_RUN=str(machine.folder / ("x" * 80)))
    )
    assert refused.wait(MANAGER_SECONDS) == 1
    assert "HOSTLER_RUN" in refused.output
    refused.stop()


def test_term_ends_the_manager_and_not_its_engines(machine: Machine) -> None:
    manager = machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    manager.signal(signal.SIGTERM)
    assert manager.wait(MANAGER_SECONDS) == 0
    assert not machine.socket.exists()
    assert machine.ask_engine() == 200


def test_help_says_what_the_commands_do() -> None:
    shown = RunningProcess(python_module("worker_manager", "--help"))
    assert shown.wait(MANAGER_SECONDS) == 0
    assert "stop-workers" in shown.output
    shown.stop()

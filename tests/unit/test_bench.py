import http.client
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib.bench import chart, cpu, figures, profile, report, scenario, wire
from lib.bench.child import free_port, listens
from lib.bench.job import Job
from lib.bench.target import Target
from lib.console import Problem

SCRIPTS = Path(__file__).parents[2] / "scripts"


def result(*, cpu_seconds: float = 0.1, count: float = 1000, **further: Any) -> dict[str, Any]:
    """One round as the load reports it."""
    spread = {"p50": 1.0, "p99": 2.0}
    plain = {
        "seconds": 2.0,
        "cpu": {"gateway": cpu_seconds, "engine": 0.2, "load": 0.3},
        "count": count,
        "memory_mb": 50.0,
        "latency_ms": spread,
        "first_byte_ms": spread,
        "errors": {},
    }
    return plain | further


@pytest.fixture
def engine() -> Iterator[int]:
    """A mock engine; its port."""
    port = free_port()
    env = dict(os.environ, PYTHONPATH=str(SCRIPTS))
    process = subprocess.Popen([sys.executable, "-m", "lib.bench.engine", "serve", f"--port={port}"], env=env)
    try:
        deadline = time.monotonic() + 30
        while not listens(port):
            assert time.monotonic() < deadline
        yield port
    finally:
        process.terminate()
        process.wait(10)


def run_load_on(body: bytes) -> dict[str, Any]:
    """What the load says of a stream of two events that is answered like this."""

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        job = Job(host="127.0.0.1", port=port, key="k", connections=1, seconds=0.05, warm=0, events=2, rate=50)
        done = subprocess.run(
            [sys.executable, "-m", "lib.bench.load"],
            input=json.dumps(asdict(job)).encode(),
            env=dict(os.environ, PYTHONPATH=str(SCRIPTS)),
            stdout=subprocess.PIPE,
            timeout=30,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert figures.percentile(values, 50) == 50
    assert figures.percentile(values, 99) == 99
    assert figures.percentile([7.0], 99) == 7
    assert math.isnan(figures.percentile([], 50))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 100))
def test_a_percentile_has_its_share_of_the_values_at_or_below_it(values: list[float], part: int) -> None:
    found = figures.percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= part * len(values)


def test_the_figures_are_medians_of_the_rounds_and_errors_are_added_up() -> None:
    rounds = [
        result(cpu_seconds=0.1),
        result(cpu_seconds=0.9, errors={"lost": 1}),
        result(errors={"lost": 2, "wrong": 1}),
    ]
    summary = figures.summary(rounds)
    assert summary["gateway_us"] == pytest.approx(100)
    assert summary["per_second"] == 500
    assert summary["gateway_core"] == pytest.approx(0.05)
    assert summary["bench_core"] == pytest.approx(0.25)
    assert summary["errors"] == {"lost": 3, "wrong": 1}


def test_nothing_that_was_counted_costs_nothing_that_could_be_compared() -> None:
    summary = figures.summary([result(count=0)])
    assert math.isnan(summary["gateway_us"])
    assert figures.verdicts({"json": {"hostler": summary, "nginx": figures.summary([result()])}}) == []
    assert report.number(summary["gateway_us"]) == "-"


def test_a_goal_is_judged_only_where_both_sides_were_measured() -> None:
    def costing(microseconds: float) -> dict[str, Any]:
        return {"gateway_us": microseconds}

    found = figures.verdicts({
        "json": {"hostler": costing(70), "nginx": costing(20), "litellm": costing(8000)},
        "streams-100": {"hostler": costing(33), "nginx": costing(20)},
        "churn": {"hostler": costing(500), "nginx": costing(1)},
    })  # fmt: skip
    assert [(verdict.goal.scenario, verdict.goal.other, verdict.met) for verdict in found] == [
        ("json", "nginx", True),
        ("streams-100", "nginx", False),
        ("json", "litellm", True),
    ]


def test_every_event_is_as_long_as_said_and_every_piece_of_a_stream_is_known() -> None:
    assert {len(event) for event in wire.EVENTS} == {wire.EVENT_BYTES}
    assert len(set(wire.EVENTS)) == wire.DISTINCT
    assert all(event.count(wire.TOKEN) == 1 for event in wire.EVENTS)
    start = len(wire.CYCLE) - 100
    assert wire.CYCLE_TWICE.startswith(wire.EVENTS[-1][90:] + wire.EVENTS[0], start)


def test_an_order_reaches_the_engine_in_the_prompt_of_a_request_of_the_size_asked_for() -> None:
    request = wire.request("127.0.0.1:1", "key", events=40, rate=50, prompt_bytes=32 * 1024, usage=True)
    head, _, body = request.partition(b"\r\n\r\n")
    assert wire.order(body) == (40, 50)
    assert len(json.loads(body)["messages"][0]["content"]) == 32 * 1024
    assert f"Content-Length: {len(body)}".encode() in head
    assert wire.WANTS_USAGE.search(body)
    assert wire.order(b'{"prompt": "a"}') == (0, 0)


def test_the_cpu_time_of_a_process_grows_by_what_its_threads_use() -> None:
    def spin() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    before = cpu.seconds(os.getpid())
    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    assert cpu.seconds(os.getpid()) - before >= 0.02  # the thread has ended, its time is counted all the same
    assert cpu.seconds(os.getpid()) == pytest.approx(time.process_time(), abs=1)


def test_a_process_that_has_ended_uses_neither_time_nor_memory() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert cpu.seconds(child.pid) == 0
    assert cpu.resident_mb([child.pid]) == 0
    assert cpu.resident_mb([os.getpid()]) > 1


def test_a_family_is_a_process_and_all_below_it() -> None:
    with subprocess.Popen(["sh", "-c", "cat; true"], stdin=subprocess.PIPE) as parent:
        while len(family := cpu.family(parent.pid)) < 2:
            assert parent.poll() is None
        assert family[0] == parent.pid
        assert set(family) < set(cpu.family(os.getpid()))


def test_scenarios_are_chosen_by_name_and_a_wrong_name_is_told() -> None:
    assert [each.name for each in scenario.chosen(["streams-100", "json"])] == ["json", "streams-100"]
    assert scenario.chosen([]) == list(scenario.SCENARIOS)
    with pytest.raises(Problem, match="no scenario jsonn"):
        scenario.chosen(["jsonn"])
    assert {goal.scenario for goal in figures.GOALS} <= {each.name for each in scenario.SCENARIOS}


def test_a_slow_target_gets_fewer_scenarios_and_streams_it_keeps_up_with() -> None:
    slow, quick = Target("slow", ""), Target("quick", "")
    slow.slow, slow.chunks_per_second = True, 300
    hundred, thousand = scenario.chosen(["streams-100", "streams-1000"])
    assert hundred.fits(slow)
    assert not thousand.fits(slow)
    assert thousand.fits(quick)
    assert hundred.job(slow, 2, {}).rate == 3
    job = hundred.job(quick, 2, {})
    assert job.rate == scenario.RATE
    assert job.events / job.rate > job.warm + job.seconds


def test_streams_that_fell_behind_or_broke_are_told() -> None:
    streams = {"streams": 100, "whole": 99, "open_to_the_last": 60, "memory_before_mb": 50.0, "ordered": 5000}
    summary = figures.summary([result(count=4000, errors={"events are missing": 1}, **streams)])
    text = report.table(scenario.chosen(["streams-100"])[0], {"hostler": summary})
    assert "99 of 100 streams whole" in text
    assert "fell behind the ordered 5,000 a second" in text
    assert "40 streams were over before the counting was" in text
    assert "1 x events are missing" in text


def test_the_report_as_json_is_json_even_where_a_figure_is_missing() -> None:
    found = {"json": {"hostler": figures.summary([result(count=0)])}}
    read = json.loads(report.as_json(report.machine("Python 3"), found, []))
    assert read["scenarios"]["json"]["hostler"]["gateway_us"] is None


def test_the_chart_is_an_image_with_a_bar_for_each_target_and_cuts_the_longest() -> None:
    found = {
        "json": {"hostler": {"gateway_us": 60.0}, "nginx": {"gateway_us": 20.0}, "litellm": {"gateway_us": 8000.0}}
    }
    text = chart.svg(scenario.chosen(["json", "churn"]), found, "two cores & more")
    root = ET.fromstring(text)  # noqa: S314 - our own text
    bars = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("x")]
    assert len(bars) == 3
    assert "8,000.0 (cut)" in text
    assert "(cut)" in text
    assert float(bars[0].get("width", 0)) * 3 == pytest.approx(float(bars[2].get("width", 0)), rel=0.01)


def test_a_profile_counts_the_event_loop_at_work_and_folds_what_is_not_readable() -> None:
    stacks = (
        "main (a.py:1);run_until_complete (loop.c);pump (proxy/upstream.py:12);write (loop.c);0x7f (libc.so.6) 6\n"
        "main (a.py:1);run_until_complete (loop.c);pump (proxy/upstream.py:14) 2\n"
        "main (a.py:1);run_until_complete (loop.c);uv__io_poll (linux.c);0x7f (libc.so.6) 90\n"
        "run (threading.py:5);wait (threading.py:9) 500\n"
    )
    own, whole = profile.shares(stacks)
    assert own == {"write (loop.c) and below": 6, "pump (upstream.py)": 2}
    assert whole["pump (upstream.py)"] == 8


def test_the_mock_engine_sends_each_event_as_a_chunk_and_usage_to_those_who_ask(engine: int) -> None:
    for usage in (False, True):
        connection = http.client.HTTPConnection("127.0.0.1", engine, timeout=10)
        head, _, body = wire.request("x", "key", events=5, rate=200, usage=usage).partition(b"\r\n\r\n")
        connection.request("POST", head.split()[1].decode(), body)
        answer = connection.getresponse()
        assert answer.read() == b"".join((*wire.EVENTS[:5], *wire.tail(usage=usage)))
        connection.close()


def test_the_mock_engine_passes_the_ladder_that_tells_a_ready_engine(engine: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine, timeout=10)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b""
    connection.request("GET", "/v1/models")
    assert wire.MODEL in {model["id"] for model in json.load(connection.getresponse())["data"]}
    connection.request("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": 1}')
    assert json.load(connection.getresponse())["choices"]
    connection.request("GET", "/elsewhere")
    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (wire.EVENTS[2], "another stream than the engine sent"),
        (b"", "events are missing"),
    ],
)
def test_the_load_notices_a_stream_that_is_not_the_engines(changed: bytes, problem: str) -> None:
    body = wire.EVENTS[0] + changed + b"".join(wire.tail(usage=False))
    assert run_load_on(body)["errors"] == {problem: 1}


def test_the_load_counts_a_stream_that_is_whole() -> None:
    found = run_load_on(wire.EVENTS[0] + wire.EVENTS[1] + b"".join(wire.tail(usage=False)))
    assert found["errors"] == {}
    assert found["whole"] == 1

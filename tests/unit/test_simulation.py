"""The simulation: the same seed gives the same run, nothing is over-promised, and its figures are what they say."""

import json
from pathlib import Path

import pytest

from tests.simulation.command import POLICIES, main
from tests.simulation.machine import Machine
from tests.simulation.policies import Planner
from tests.simulation.report import jain, percentile, report
from tests.simulation.scenario import Model, Request, Scenario, cards
from tests.simulation.traces import TRACES

HOURS = 1 / 24


@pytest.mark.parametrize("trace", TRACES)
def test_the_same_seed_gives_the_same_traffic_and_another_seed_another(trace: str) -> None:
    make = TRACES[trace]
    assert make(3, 6 * HOURS) == make(3, 6 * HOURS)
    assert make(3, 6 * HOURS).requests != make(4, 6 * HOURS).requests


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_repeats_itself_and_every_request_has_its_wait(policy: str) -> None:
    scenario = TRACES["mixed"](1, 3 * HOURS)
    first, again = (Machine(scenario, POLICIES[policy]()).run() for _ in range(2))
    assert first == again
    assert len(first.waits) == len(scenario.requests)
    assert min(wait for _, _, wait in first.waits) >= 0


def test_a_cold_model_is_waited_for_as_long_as_it_loads_and_a_hot_one_not_at_all() -> None:
    model = Model(name="m", load_seconds=40.0)
    asked = (Request(0.0, "m", 5.0), Request(100.0, "m", 5.0), Request(5000.0, "m", 5.0))
    served = Machine(Scenario(name="one", models=(model,), cards=cards(1), requests=asked), Planner()).run()
    assert [round(wait) for _, _, wait in served.waits] == [40, 0, 40], "the last one came after idle_seconds"
    assert len(served.loads) == 2


def test_figures_are_what_their_names_say() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile(list(range(1, 201)), 0.99) == 198
    assert jain([5.0, 5.0, 5.0]) == pytest.approx(1.0)
    assert jain([9.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    scenario = TRACES["pingpong"](1, HOURS)
    found = report("pingpong", "planner", Machine(scenario, Planner()).run())
    assert found.requests == len(scenario.requests)
    assert found.p50 <= found.p90 <= found.p99 <= found.worst


def test_the_command_prints_a_table_and_writes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "waits.svg"
    words = ["--trace", "zipf", "--days", "0.05", "--seed", "2", "--json", str(figures), "--plot", str(picture)]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(POLICIES)
    assert [one["policy"] for one in json.loads(figures.read_bytes())] == list(POLICIES)
    assert picture.read_text().startswith("<svg ")

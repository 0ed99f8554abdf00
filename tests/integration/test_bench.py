"""scripts/bench as a user runs it, on what every machine has: Hostler itself, without nginx."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bench needs two cores")
def test_a_quick_run_answers_everything_rightly_and_writes_its_figures(tmp_path: Path) -> None:
    words = [
        "--quick",
        "--only",
        "json,streams-100",
        "--targets",
        "hostler",
        "--json",
        "figures",
        "--plot",
        "chart.svg",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
    done = subprocess.run(
        [str(REPOSITORY / "scripts" / "bench"), *words],
        cwd=tmp_path,
        env=env | {"HOSTLER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scenarios = json.loads((tmp_path / "figures").read_text())["scenarios"]
    json_answers, streams = scenarios["json"]["hostler"], scenarios["streams-100"]["hostler"]
    assert json_answers["per_second"] > 0
    assert json_answers["gateway_us"] > 0
    assert (streams["streams"], streams["whole"]) == (100, 100)
    assert json_answers["errors"] == streams["errors"] == {}
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_a_word_that_means_nothing_is_told_before_anything_starts() -> None:
    for words in (["--only", "jsonn"], ["--targets", "nginks"], ["--json", "/nowhere/at/all"]):
        done = subprocess.run(
            [str(REPOSITORY / "scripts" / "bench"), *words], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 1
        assert words[1].split(",")[0] in done.stderr

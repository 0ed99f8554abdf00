"""The rows about speed, which `scripts/bench` measures: each holds a scenario to its goal."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.battery.report import Outcome
from tests.battery.rows import Row

BENCH_SECONDS = 300


def measured(root: Path, row: Row, outcome: Outcome) -> dict[str, str]:
    """Run the row's scenario; its figures. What misses a goal is noted as the outcome's problem."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [str(root / "scripts" / "bench"), "--only", row.bench, "--targets", "hostler", "--json", str(file)]
        env = os.environ | {"HOSTLER_PYTHON": sys.executable}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=BENCH_SECONDS, check=False)
        if done.returncode:
            outcome.problem = f"scripts/bench failed: {(done.stdout + done.stderr)[-500:]}"
            return {}
        found: dict[str, Any] = json.loads(file.read_text())["scenarios"][row.bench]["hostler"]
    values = {name: value_of(found, name) for name in (*row.at_least, *row.at_most)}
    missed = [f"{name} {values[name]:,.5g}, goal {goal:g}" for name, goal in row.at_most.items() if values[name] > goal]
    missed += [
        f"{name} {values[name]:,.5g}, goal {goal:g}" for name, goal in row.at_least.items() if values[name] < goal
    ]
    missed += [f"errors {found['errors']}"] if found["errors"] else []
    outcome.problem = "; ".join(missed)
    return {name.replace(".", " ").replace("_", " "): f"{value:,.5g}" for name, value in values.items()}


def value_of(found: dict[str, Any], name: str) -> float:
    """A figure; `latency_ms.p99` is the `p99` of `latency_ms`."""
    for part in name.split("."):
        found = found[part]
    return float(found)  # type: ignore[arg-type] # the last one is a number

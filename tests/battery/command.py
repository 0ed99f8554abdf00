"""The battery: every promise of docs/reliability.md held once at its full size, with its goal and what was found.

One row after the other, each in a pytest of its own with HOSTLER_BATTERY=1, under which the tests are as large as the
row says, and hold the times that CI, on a machine that does other things meanwhile, only shows. It takes about an hour
for all; name rows to run some. Rows of Docker need what `scripts/test docker` needs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.battery.bench import measured
from tests.battery.report import Outcome, markdown, read
from tests.battery.rows import ROWS, Row
from tests.support.battery import LONGEST_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/battery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="T1", help="these rows alone")
    parser.add_argument("--list", action="store_true", help="show the rows and their tests, and run nothing")
    parser.add_argument("--brief", action="store_true", help="at the size of CI, and holding no times")
    parser.add_argument("--report", type=Path, metavar="FILE", help="keep what was found there, as JSON")
    options = parser.parse_args(words)
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in options.rows if name.upper() not in known]:
        parser.error(f"there is no row {', '.join(unknown)}; there are T1 to T{len(ROWS)}")
    options.rows = [known[name.upper()] for name in options.rows] or list(ROWS)
    return options


def run(row: Row, *, brief: bool) -> Outcome:
    """Run one row."""
    began = time.monotonic()
    outcome = tested(row, brief=brief) if row.tests else Outcome(row=row.name)
    if row.bench and not brief:
        outcome.figures |= measured(ROOT, row, outcome)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def tested(row: Row, *, brief: bool) -> Outcome:
    """Run a row's tests; what they say where they fail is shown."""
    env = {name: value for name, value in os.environ.items() if name != "HOSTLER_BATTERY"}
    env |= {} if brief else {"HOSTLER_BATTERY": "1"}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        # in the order of the files: what a test finds of memory depends on what was before it
        options = ["-q", "-p", "no:randomly", "--timeout", str(LONGEST_SECONDS), "-o", "junit_family=xunit1"]
        words = [f"--junitxml={found}", *(str(ROOT / "tests" / test) for test in row.tests)]
        command = [sys.executable, "-m", "pytest", *options, *words]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        outcome = read(row.name, found) if found.exists() else Outcome(row=row.name, problem="nothing was run")
    if done.returncode and not outcome.problem:
        outcome.problem = "pytest failed"
    if outcome.problem:
        print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)  # noqa: T201
    return outcome


def main(words: list[str] | None = None) -> int:
    """Run the command; 1 where a row does not hold."""
    options = parse(words)
    if options.list:
        print(markdown(options.rows, {}))  # noqa: T201
        return 0
    kept: dict[str, Outcome] = {}
    if options.report is not None and options.report.exists():
        kept = msgspec.json.decode(options.report.read_bytes(), type=dict[str, Outcome])
    for row in options.rows:
        outcome = kept[row.name] = run(row, brief=options.brief)
        verdict = outcome.problem or "held"
        print(f"{row.name:<4} {outcome.seconds:>7.1f} s  {verdict}: {outcome.told()}", flush=True)  # noqa: T201
        if options.report is not None:
            options.report.write_bytes(msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
    print(f"\n{markdown(options.rows, kept)}")  # noqa: T201
    return 1 if any(kept[row.name].problem for row in options.rows) else 0

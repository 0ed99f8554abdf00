"""A trial: six models on two simulated cards under mixed traffic, with faults, and every promise watched.

Gateway and worker manager run as their containers, engines are simulators in containers (stub NVML, stand-in for
NVIDIA's hook: tests/testbed/). Traffic goes over HTTP; crashes, hangs, failed wakes, slow loads and memory that is not
given back are put in meanwhile. It ends with a table, and with exit code 1 where a promise was broken. Needs root and
a Docker Engine that was started after tests/testbed/simulated_gpus.sh.
"""

import argparse
import asyncio
from pathlib import Path

import msgspec

from tests.trial.cast import BRIEF, FULL
from tests.trial.machine import trial_machine, trouble
from tests.trial.report import Report
from tests.trial.run import Trial

BRIEF_MINUTES = 2.0
"""Below this many minutes everything goes faster, loads and faults too."""


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/trial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long there is traffic (10)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed gives the same traffic (1)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the figures there, as JSON")
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write what gateway and manager logged there")
    return parser.parse_args(words)


def hold(minutes: float, seed: int, log: Path | None = None) -> Report:
    """Hold one trial."""
    pace = FULL if minutes >= BRIEF_MINUTES else BRIEF
    with trial_machine(pace) as machine:
        try:
            return asyncio.run(Trial(machine, seed, minutes * 60).run())
        finally:
            if log is not None:
                log.write_text(machine.stack.project.logs())


def main(words: list[str] | None = None) -> int:
    """Run the command."""
    options = parse(words)
    if why := trouble():
        print(f"!! {why}")  # noqa: T201
        return 2
    report = hold(options.minutes, options.seed, options.log)
    print(report.text())  # noqa: T201
    if options.report:
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 1 if report.broken else 0

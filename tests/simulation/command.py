"""Replay traffic through the real planner and through two other policies, and say who waits how long.

Policies: `planner` is gateway/scheduling/planner.py, `no-sleep` the same where engines can't sleep; `lru` replaces the
longest unused idle model, as llama-swap and Ollama do; `fcfs` lets no request overtake another. All run on the same
machine with the same traffic.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.simulation.machine import Machine
from tests.simulation.plot import waits_plot
from tests.simulation.policies import Fcfs, Lru, Planner, Policy, Stopping
from tests.simulation.report import Report, report, table
from tests.simulation.search import search, summary
from tests.simulation.traces import TRACES

POLICIES: dict[str, Callable[[], Policy]] = {"planner": Planner, "no-sleep": Stopping, "lru": Lru, "fcfs": Fcfs}


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", action="append", choices=list(TRACES), help="which traffic; more than once; all")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="who decides; more than once; all")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed gives the same trace (1)")
    parser.add_argument("--days", type=float, default=7.0, metavar="DAYS", help="length of a trace (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the waits of the last trace there, as SVG")
    parser.add_argument(
        "--search", type=int, metavar="N", help="instead: N random scenarios; exit 1 where one breaks a promise"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the command."""
    options = parse(words)
    if options.search:
        text, fine = summary(search(range(options.seed, options.seed + options.search)))
        print(text)  # noqa: T201
        return 0 if fine else 1
    reports: list[Report] = []
    for trace in options.trace or list(TRACES):
        scenario = TRACES[trace](options.seed, options.days)
        waits: dict[str, list[float]] = {}
        for name in options.policy or list(POLICIES):
            began = time.perf_counter()
            served = Machine(scenario, POLICIES[name]()).run()
            reports.append(report(trace, name, served))
            waits[name] = [wait for _, _, wait in served.waits]
            lines = table(reports[-1:]).splitlines()
            shown = lines if len(reports) == 1 else lines[1:]
            print(*shown, sep="\n", end=f"   {time.perf_counter() - began:.1f} s\n", flush=True)  # noqa: T201
        if options.plot:
            options.plot.write_text(waits_plot(f"{trace}, {options.days:g} days, seed {options.seed}", waits))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(reports)) + b"\n")
    return 0

"""Measure the gateway beside nginx: one run, two cores, the same mock engine and the same load for all.

Engine and load share one core, the gateway under test has the other. Targets take turns, so that a machine that slows
down slows them all; the figures are medians of the rounds. docs/performance.md says what each figure means.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from lib import venv
from lib.bench import chart, environments, figures, hostler, nginx, peers, profile, report, scenario
from lib.bench.session import Session
from lib.console import Problem, answer, say, step

OWN = {"hostler": hostler.start, "hostler-plain": hostler.start_plain, "nginx": nginx.start}
STARTERS = OWN | {"hostler-tls": hostler.start_secure} | peers.STARTERS
PROFILE_SECONDS = 4.0


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(each.name for each in scenario.SCENARIOS)
    parser.add_argument("--only", default="", metavar="NAMES", help=f"scenarios, with commas, of: {names}")
    parser.add_argument("--peers", action="store_true", help="also other gateways from PyPI; the first time installs")
    parser.add_argument(
        "--targets", default="", metavar="NAMES", help=f"targets, with commas, of: {', '.join(STARTERS)}"
    )
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="counted seconds of each round (1.5)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds; the median counts (3)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second: does it work at all?")
    parser.add_argument("--profile", action="store_true", help="also say where Hostler's time goes (py-spy; as root)")
    parser.add_argument(
        "--python", type=Path, metavar="PATH", help="run Hostler on this interpreter, such as python3.13"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the CPU times there as SVG")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed or an answer was wrong")
    options = parser.parse_args(words)
    for file in (options.json, options.plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise Problem(f"{file} cannot be written: there is no folder {file.absolute().parent}")
    if options.seconds <= 0 or options.rounds < 1:
        raise Problem("--seconds must be greater than 0 and --rounds at least 1")
    if options.quick:
        options.seconds, options.rounds = 0.5, 1
    return options


def split(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run(words: list[str]) -> int:
    """The whole of scripts/bench; its exit code."""
    options = parse(words)
    scenarios = scenario.chosen(split(options.only))
    wanted = split(options.targets) or list(STARTERS if options.peers else OWN)
    if unknown := [name for name in wanted if name not in STARTERS]:
        raise Problem(f"there is no target {', '.join(unknown)}; there are {', '.join(STARTERS)}")
    engine_python = venv.ensure("gateway", "manager", instead=("dev",))
    python = environments.of_hostler(options.python) if options.python else engine_python
    if options.profile:
        profile.program()  # if it cannot be had, better to say so now
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="hbench-", dir="/tmp") as folder,  # the paths of sockets must be short
        Session(Path(folder), python, engine_python) as session,
    ):
        with step("starting what is measured"):
            session.start({name: STARTERS[name] for name in wanted}, needed="hostler")
        found = measure(session, scenarios, options)
        if options.profile:
            show_profiles(session, scenarios, options.seconds)
    facts = report.machine(answer([str(python), "--version"]) or "an unknown Python")
    verdicts = figures.verdicts(found)
    say("\n".join(["", *report.verdict_lines(verdicts), "", report.caption(facts)]))
    say(f"{time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(report.as_json(facts, found, verdicts), encoding="utf-8")
    if options.plot:
        options.plot.write_text(chart.svg(scenarios, found, report.caption(facts)), encoding="utf-8")
    wrong = any(summary["errors"] for by_target in found.values() for summary in by_target.values())
    return 1 if options.check and (wrong or not all(verdict.met for verdict in verdicts)) else 0


def show_profiles(session: Session, scenarios: list[scenario.Scenario], seconds: float) -> None:
    """Say for each scenario where the time of Hostler's gateway goes."""
    for each in scenarios:
        with step(f"profile of hostler, {each.name}: sampling slows it down, so nothing here is a measurement"):
            stacks = session.profile(each, session.targets[0], max(seconds, PROFILE_SECONDS))
        say("\n".join(profile.lines(stacks)) + "\n")


def measure(
    session: Session, scenarios: list[scenario.Scenario], options: argparse.Namespace
) -> dict[str, dict[str, dict[str, Any]]]:
    """Summaries by scenario and target; each table is shown as soon as it is whole."""
    found = {}
    for each in scenarios:
        rounds: dict[str, list[dict[str, Any]]] = {target.name: [] for target in session.targets}
        count = 1 if each.once else options.rounds
        with step(f"{each.name}, {count} round{'s' if count > 1 else ''}"):
            for number in range(count):
                # each round begins with another target
                turn = (
                    session.targets[number % len(session.targets) :] + session.targets[: number % len(session.targets)]
                )
                for target in filter(each.fits, turn):
                    rounds[target.name].append(session.measure(each, target, options.seconds))
        found[each.name] = {name: figures.summary(results) for name, results in rounds.items() if results}
        say(report.table(each, found[each.name]) + "\n")
    return found

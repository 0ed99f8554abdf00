"""`python -m gateway.replay FILE …`: the decisions of a log, put to the planner of this version again.

    scripts/replay decisions.jsonl

It prints where today's planner decides otherwise, and ends with status 1 if it does anywhere. With `--show` it prints
what was decided then, and why, all along.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.decisions import Entry
from gateway.scheduling.planner import plan
from gateway.scheduling.types import Decision, Plan
from worker_manager.contract import Residency


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay the files that are named. Exit status 1: something differs; 2: a file can't be read."""
    parser = argparse.ArgumentParser(prog="replay", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="decisions.jsonl, or what /api/plan/log gave"
    )
    parser.add_argument("--show", action="store_true", help="print every decision that was taken, with its reason")
    given = parser.parse_args(arguments)
    try:
        count, differing = _replay(given.files, show=given.show)
    except (OSError, msgspec.MsgspecError) as problem:
        sys.stderr.write(f"replay: {problem}\n")
        sys.exit(2)
    sys.stdout.write(f"{count} plans, {differing} of them are other ones now\n")
    sys.exit(1 if differing else 0)


def _replay(files: Sequence[Path], *, show: bool) -> tuple[int, int]:
    count = differing = 0
    for entry in _entries(files):
        count += 1
        now = plan(entry.situation)
        found = list(differences(entry.plan, now))
        differing += bool(found)
        lines = [*(_line(one) for one in entry.plan.decisions)] if show else []
        lines += found
        if lines:
            sys.stdout.write("\n".join([_time(entry.at), *(f"  {line}" for line in lines)]) + "\n")
    return count, differing


def _entries(files: Sequence[Path]) -> Iterator[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # the process was killed while it wrote this one
                try:
                    yield decoder.decode(line)
                except msgspec.MsgspecError as problem:
                    raise msgspec.ValidationError(f"{path}, line {number}: {problem}") from None


def differences(then: Plan, now: Plan) -> Iterator[str]:
    """In which workers two plans differ, a line each; only what is carried out counts, not how it is explained."""
    before, after = {spec.id: spec for spec in then.desired}, {spec.id: spec for spec in now.desired}
    for one in sorted(before.keys() | after.keys()):
        if one not in after:
            yield f"- {one}: is no longer desired{_why(now, one)}"
        elif one not in before:
            yield f"+ {one}: is desired now{_why(now, one)}"
        elif before[one] != after[one]:
            yield f"~ {one}: is another worker"
        elif (one in then.draining) is not (one in now.draining):
            yield f"~ {one}: {'drains' if one in now.draining else 'does not drain'} now{_why(now, one)}"
        elif (warm := _rung(then, one)) != _rung(now, one):
            yield f"~ {one}: {warm} then, {_rung(now, one)} now{_why(now, one)}"


def _rung(decided: Plan, worker: str) -> str:
    return decided.residencies.get(worker, Residency.HOT).value


def _why(decided: Plan, worker: str) -> str:
    return next((f" ({one.reason})" for one in decided.decisions if one.worker == worker), "")


def _line(decision: Decision) -> str:
    worker = f" {decision.worker}" if decision.worker else ""
    return f"{decision.verb.value} {decision.endpoint}{worker}: {decision.reason}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    main()

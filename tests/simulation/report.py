"""What a run says: waits, swaps, fairness. Seconds; percentiles are of the nearest rank."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from tests.simulation.machine import Served

HOUR = 3600.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one trace."""

    trace: str
    policy: str
    requests: int
    unserved: int
    """Requests still waiting an hour after the last one came; their wait until then counts."""
    mean: float
    p50: float
    p90: float
    p99: float
    worst: float
    starts_an_hour: float
    """Engines started, an hour."""
    wakes_an_hour: float
    fairness: float
    """Jain's index of the endpoints' mean waits: 1 where all wait alike, 1/n where one does all the waiting."""
    shortest_stay: float | None
    """Seconds the shortest-lived worker was ready before it had to make room; None if none had to."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def jain(values: Iterable[float]) -> float:
    """(sum x)^2 / (n * sum x^2): Jain, Chiu and Hawe, DEC Research Report TR-301 (1984)."""
    found = list(values)
    squares = sum(value * value for value in found)
    return sum(found) ** 2 / (len(found) * squares) if squares else 1.0


def report(trace: str, policy: str, served: Served) -> Report:
    """Sum up a run."""
    waits = sorted(wait for _, _, wait in served.waits)
    by_model: defaultdict[str, list[float]] = defaultdict(list)
    for model, _, wait in served.waits:
        by_model[model].append(wait)
    return Report(
        trace=trace,
        policy=policy,
        requests=len(waits),
        unserved=served.unserved,
        mean=sum(waits) / len(waits) if waits else 0.0,
        p50=percentile(waits, 0.5),
        p90=percentile(waits, 0.9),
        p99=percentile(waits, 0.99),
        worst=waits[-1] if waits else 0.0,
        starts_an_hour=len(served.loads) / max(served.seconds, 1.0) * HOUR,
        wakes_an_hour=len(served.wakes) / max(served.seconds, 1.0) * HOUR,
        fairness=jain(sum(found) / len(found) for found in by_model.values()),
        shortest_stay=min(served.stays, default=None),
    )


def table(reports: Iterable[Report]) -> str:
    """Lines for people."""
    head = f"{'trace':<10}{'policy':<16}{'requests':>9}{'mean':>8}{'p50':>8}{'p99':>8}{'worst':>8}"
    lines = [head + f"{'starts/h':>10}{'wakes/h':>9}{'fairness':>10}{'unserved':>10}"]
    lines += [
        f"{one.trace:<10}{one.policy:<16}{one.requests:>9}{one.mean:>8.1f}{one.p50:>8.1f}{one.p99:>8.1f}"
        f"{one.worst:>8.0f}{one.starts_an_hour:>10.1f}{one.wakes_an_hour:>9.1f}{one.fairness:>10.2f}{one.unserved:>10}"
        for one in reports
    ]
    return "\n".join(lines)

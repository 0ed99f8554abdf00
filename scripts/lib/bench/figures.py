"""The arithmetic of a report: percentiles, medians of rounds, ratios, verdicts. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MICRO = 1_000_000


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)]


def cost(result: Mapping[str, Any], who: str = "gateway") -> float:
    """Microseconds of CPU for one request or chunk; NaN if there was none."""
    return float(result["cpu"].get(who, 0.0)) / result["count"] * MICRO if result["count"] else math.nan


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one target in one scenario: medians of the rounds, errors of all of them."""
    errors: dict[str, int] = {}
    for result in rounds:
        for why, count in result["errors"].items():
            errors[why] = errors.get(why, 0) + count
    found = {
        "per_second": median(result["count"] / result["seconds"] for result in rounds),
        "gateway_us": median(cost(result) for result in rounds),
        "gateway_us_rounds": [round(cost(result), 2) for result in rounds],
        "gateway_core": median(result["cpu"].get("gateway", 0.0) / result["seconds"] for result in rounds),
        "bench_core": median(
            sum(result["cpu"].get(name, 0.0) for name in ("engine", "load")) / result["seconds"] for result in rounds
        ),
        "manager_core": median(result["cpu"].get("manager", 0.0) / result["seconds"] for result in rounds),
        "memory_mb": max(result["memory_mb"] for result in rounds),
        "errors": errors,
    }
    for name in ("latency_ms", "first_byte_ms"):
        found[name] = {part: median(result[name][part] for result in rounds) for part in ("p50", "p99")}
    if "streams" in rounds[0]:
        found |= {name: sum(result[name] for result in rounds) for name in ("streams", "whole", "open_to_the_last")}
        found |= {name: rounds[0][name] for name in ("memory_before_mb", "ordered")}
    return found


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Hostler's cost over another's must be at most this in a scenario."""

    other: str
    scenario: str
    most: float


GOALS = (
    Goal(other="nginx", scenario="json", most=3.5),
    Goal(other="nginx", scenario="streams-100", most=1.6),
    Goal(other="nginx", scenario="streams-400", most=1.6),
    Goal(other="vllm-router/cache_aware", scenario="json", most=1.0),
    Goal(other="vllm-router/cache_aware", scenario="streams-100", most=1.0),
    Goal(other="vllm-router/cache_aware", scenario="streams-400", most=1.0),
    Goal(other="litellm", scenario="json", most=1 / 50),
    Goal(other="litellm", scenario="streams-100", most=1 / 50),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal and what was measured: `ratio` is Hostler's CPU over the other's."""

    goal: Goal
    ratio: float

    @property
    def met(self) -> bool:
        """Whether the goal was reached, to the two digits that are shown."""
        return round(self.ratio / self.goal.most, 2) <= 1


def verdicts(figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Verdict]:
    """Of each goal that both targets were measured for; `figures` holds summaries by scenario and target."""
    found = []
    for goal in GOALS:
        by_target = figures.get(goal.scenario, {})
        if "hostler" in by_target and goal.other in by_target:
            ratio = by_target["hostler"]["gateway_us"] / by_target[goal.other]["gateway_us"]
            if not math.isnan(ratio):
                found.append(Verdict(goal=goal, ratio=ratio))
    return found

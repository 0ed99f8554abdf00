"""The report as text."""

import json
import math
import platform
from collections.abc import Mapping
from typing import Any

from lib.bench.figures import Verdict
from lib.bench.scenario import Scenario

COLUMNS = (
    "target",
    "per second",
    "CPU us",
    "x nginx",
    "core",
    "p50 ms",
    "p99 ms",
    "ttfb p50",
    "ttfb p99",
    "MB",
    "errors",
)
BUSY = 0.9
KEPT_UP = 0.95
LAYOUT = "{:<26}{:>11}{:>12}{:>9}{:>7}{:>9}{:>9}{:>10}{:>10}{:>8}{:>8}"


def table(scenario: Scenario, by_target: Mapping[str, Mapping[str, Any]]) -> str:
    """One scenario: a line for each target."""
    names = list(COLUMNS)
    names[2] = f"us/{scenario.unit}"
    lines = [f"{scenario.name}: {scenario.about}", LAYOUT.format(*names)]
    floor = by_target.get("nginx", {}).get("gateway_us")
    for name, found in by_target.items():
        cells = [
            f"{found['per_second']:,.0f}",
            number(found["gateway_us"]),
            number(found["gateway_us"] / floor, 2) if floor else "-",
            f"{found['gateway_core'] * 100:.0f}%",
            *(number(found["latency_ms"][part]) for part in ("p50", "p99")),
            *(number(found["first_byte_ms"][part]) for part in ("p50", "p99")),
            number(found["memory_mb"], 0),
            str(sum(found["errors"].values())),
        ]
        lines.append(LAYOUT.format(name, *cells))
    for name, found in by_target.items():
        lines += [f"   {name}: {note}" for note in notes(found)]
    return "\n".join(lines)


def number(value: float, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def notes(found: Mapping[str, Any]) -> list[str]:
    """What the table has no room for: streams that were whole, memory, errors by kind, a bench that was the limit."""
    lines = []
    if "streams" in found:
        whole = "" if not found["ordered"] else f"{found['whole']} of {found['streams']} streams whole; "
        lines.append(f"{whole}{number(found['memory_before_mb'])} MB before, {number(found['memory_mb'])} MB with them")
        if found["open_to_the_last"] < found["streams"]:
            ended = found["streams"] - found["open_to_the_last"]
            lines.append(
                f"{ended} streams were over before the counting was: a chunk's share of their ends is in its cost"
            )
    if found["per_second"] < KEPT_UP * found.get("ordered", 0):
        lines.append(
            f"fell behind the ordered {found['ordered']:,.0f} a second: its chunks travel together and cost less"
        )
    if found["bench_core"] > BUSY > found["gateway_core"]:
        lines.append("engine and load filled their core, not the gateway its own: it could do more a second")
    return lines + [f"{count} x {why}" for why, count in found["errors"].items()]


def verdict_lines(verdicts: list[Verdict]) -> list[str]:
    """Goals: met or missed."""
    return [
        f"{'met   ' if verdict.met else 'MISSED'}  {verdict.goal.scenario:<12} CPU of hostler / {verdict.goal.other}: "
        f"{verdict.ratio:.3g}, goal at most {verdict.goal.most:.3g}"
        for verdict in verdicts
    ]


def machine(python: str) -> dict[str, Any]:
    """What the figures were measured on."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a file of the kernel
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"cpu": model, "kernel": platform.release(), "python": python}


def caption(facts: Mapping[str, Any]) -> str:
    """The machine in a line."""
    return f"{facts['cpu']}, two cores used, Linux {facts['kernel']}, {facts['python']}"


def as_json(facts: Mapping[str, Any], found: Mapping[str, Any], verdicts: list[Verdict]) -> str:
    """Everything that was found, as JSON."""
    goals = [
        {"scenario": v.goal.scenario, "other": v.goal.other, "ratio": v.ratio, "most": v.goal.most, "met": v.met}
        for v in verdicts
    ]
    whole = {"machine": facts, "scenarios": found, "goals": goals}
    return json.dumps(_without_nan(whole), indent=1) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

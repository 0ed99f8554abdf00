"""The report as text."""

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
LAYOUT = "{:<26}{:>11}{:>9}{:>9}{:>7}{:>9}{:>9}{:>10}{:>10}{:>8}{:>8}"


def table(scenario: Scenario, by_target: Mapping[str, Mapping[str, Any]]) -> str:
    """One scenario: a line for each target."""
    names = list(COLUMNS)
    names[2] = f"us/{'chunk' if scenario.streams else 'req'}"
    lines = [f"{scenario.name}: {scenario.about}", LAYOUT.format(*names)]
    floor = by_target.get("nginx", {}).get("gateway_us")
    for name, found in by_target.items():
        lines.append(
            LAYOUT.format(
                name,
                f"{found['per_second']:,.0f}",
                f"{found['gateway_us']:.1f}",
                f"{found['gateway_us'] / floor:.2f}" if floor else "-",
                f"{found['gateway_core'] * 100:.0f}%",
                *(f"{found['latency_ms'][part]:.1f}" for part in ("p50", "p99")),
                *(f"{found['first_byte_ms'][part]:.1f}" for part in ("p50", "p99")),
                f"{found['memory_mb']:.0f}",
                sum(found["errors"].values()),
            )
        )
    lines += notes(by_target)
    return "\n".join(lines)


def notes(by_target: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the table has no room for: errors by kind, whole streams, a bench that was the bottleneck."""
    lines = []
    for name, found in by_target.items():
        if "streams" in found:
            lines.append(
                f"   {name}: {found['whole']} of {found['streams']} streams whole; "
                f"{found['memory_before_mb']:.0f} MB before them"
            )
        lines += [f"   {name}: {count} x {why}" for why, count in found["errors"].items()]
    return lines


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

"""The chart: CPU time of each target in each scenario as bars, one SVG without any dependency. Pure."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from lib.bench.scenario import Scenario

WIDTH = 900
LEFT = 210
RIGHT = 110
LINE = 22
TITLE = 34
GAP = 18
LONGEST_TO_HOSTLER = 3.0
"""A bar is cut at so many times Hostler's: one slow peer would flatten all others."""
COLOURS = {"hostler": "#c2410c", "nginx": "#94a3b8"}
PEER_COLOUR = "#475569"


def svg(scenarios: list[Scenario], figures: Mapping[str, Mapping[str, Mapping[str, Any]]], caption: str) -> str:
    """The whole picture; `figures` holds summaries by scenario and target."""
    parts: list[str] = []
    top = TITLE
    for scenario in scenarios:
        drawn, top = _panel(scenario, figures.get(scenario.name, {}), top)
        parts += drawn
    parts.append(f'<text x="10" y="{top + 4}" class="small">{escape(caption)}</text>')
    style = "text{font:13px sans-serif;fill:#1e293b}.head{font-weight:bold}.small{font-size:11px;fill:#64748b}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + GAP}" '
        f'viewBox="0 0 {WIDTH} {top + GAP}"><style>{style}</style><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="20" class="head">CPU time of the gateway, microseconds</text>{"".join(parts)}</svg>\n'
    )


def _panel(scenario: Scenario, by_target: Mapping[str, Mapping[str, Any]], top: int) -> tuple[list[str], int]:
    """The bars of one scenario from `top` on, and where the next panel begins."""
    costs = {name: float(found["gateway_us"]) for name, found in by_target.items()}
    costs = {name: cost for name, cost in costs.items() if not math.isnan(cost)}
    if not costs:
        return [], top
    longest = max(costs.values())
    if "hostler" in costs:
        longest = min(longest, costs["hostler"] * LONGEST_TO_HOSTLER)
    parts = [f'<text x="10" y="{top + 14}" class="head">{escape(scenario.about)}, per {scenario.unit}</text>']
    top += LINE
    for name, cost in costs.items():
        length = (WIDTH - LEFT - RIGHT) * min(cost, longest) / longest
        cut = " (cut)" if cost > longest else ""
        parts.append(
            f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{LEFT}" y="{top + 2}" width="{length:.1f}" height="{LINE - 6}" '
            f'fill="{COLOURS.get(name, PEER_COLOUR)}"/>'
            f'<text x="{LEFT + length + 6:.1f}" y="{top + 14}">{cost:,.1f}{cut}</text>'
        )
        top += LINE
    return parts, top + GAP

"""A picture of waits: for each policy the share of requests that wait longer than so many seconds. SVG by hand."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 360, 70, 50, 40, 20
COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#66a182", "#6b4e9b", "#333333")
LEAST_WAIT, LEAST_SHARE = 0.1, 1e-4


def waits_plot(title: str, waits: Mapping[str, Sequence[float]]) -> str:
    """An SVG of both axes in powers of ten; `waits` are seconds by policy."""
    longest = max([1.0, *(max(found, default=0.0) for found in waits.values())])
    decades = math.ceil(math.log10(longest / LEAST_WAIT))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        "<style>text { font-size: 12px }</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, "middle"),
        _text(WIDTH / 2, HEIGHT - 10, "seconds waited for a worker", "middle"),
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">share that waits longer</text>',
        *_grid(decades),
    ]
    for number, (name, found) in enumerate(waits.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in _curve(found, decades))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(WIDTH - RIGHT - 8, TOP + 16 + 16 * number, name, "end", colour))
    return "\n".join([*parts, "</svg>", ""])


def _grid(decades: int) -> Iterable[str]:
    for step in range(decades + 1):
        x = _x(LEAST_WAIT * 10**step, decades)
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>'
        yield _text(x, HEIGHT - BOTTOM + 16, f"{LEAST_WAIT * 10**step:g}", "middle")
    for step in range(5):
        y = _y(10.0**-step)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield _text(LEFT - 6, y + 4, f"{100 * 10.0**-step:g} %", "end")


def _curve(waits: Sequence[float], decades: int) -> Iterable[tuple[float, float]]:
    ordered = sorted(waits)
    number = len(ordered)
    for step in range(241):
        wait = LEAST_WAIT * 10 ** (decades * step / 240)
        share = (number - bisect_right(ordered, wait)) / number if number else 0.0
        yield _x(wait, decades), _y(max(share, LEAST_SHARE))


def _x(wait: float, decades: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(max(wait, LEAST_WAIT) / LEAST_WAIT) / decades


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * -math.log10(max(share, LEAST_SHARE)) / -math.log10(LEAST_SHARE)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'

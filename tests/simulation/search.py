"""Random scenarios by the thousand, on all processors, in search of a broken promise."""

import os
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

import msgspec

from tests.simulation.bound import Watcher, bound_seconds
from tests.simulation.machine import Machine
from tests.simulation.random_scenarios import scenario


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one scenario showed."""

    number: int
    spells: int
    """How often an endpoint was without a worker while somebody waited."""
    longest: float
    """Seconds of the longest of them."""
    bound_share: float
    """The most that any of them took of its bound; above 1 the bound was passed."""
    stayed_share: float
    """The least that a worker stayed before it made room, as a share of the minimum residency."""
    problem: str = ""
    """An invariant of the machine that broke: over-promise, a request on a draining worker, a dropped busy worker."""


def examine(number: int) -> Finding:
    """Run one scenario."""
    made = scenario(number)
    watcher = Watcher()
    machine = Machine(made, watcher)
    try:
        machine.run()
    except AssertionError as broken:
        return Finding(
            number=number, spells=0, longest=0, bound_share=0, stayed_share=1, problem=str(broken) or "an invariant"
        )
    spells = list(watcher.all(machine.now))
    least = made.minimum_residency_seconds
    return Finding(
        number=number,
        spells=len(spells),
        longest=max((spell.seconds() for spell in spells), default=0.0),
        bound_share=max((spell.seconds() / bound_seconds(made, spell.ahead) for spell in spells), default=0.0),
        stayed_share=watcher.shortest_stay / least if least else 1.0,
    )


def search(numbers: Iterable[int]) -> Iterator[Finding]:
    """Run them all, in no order."""
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        yield from pool.imap_unordered(examine, numbers, chunksize=10)


def summary(findings: Iterable[Finding]) -> tuple[str, bool]:
    """Lines for people, and whether every promise held."""
    found = list(findings)
    worst = max(found, key=lambda one: one.bound_share)
    broken = [one for one in found if one.problem]
    passed = [one for one in found if one.bound_share > 1]
    hasty = [one for one in found if one.stayed_share < 1 - 1e-6]
    lines = [
        f"{len(found)} scenarios, {sum(one.spells for one in found)} times an endpoint waited without a worker",
        f"starvation bound passed: {len(passed)} times; nearest: {worst.bound_share:.0%}, scenario {worst.number}",
        f"longest time without a worker: {max(one.longest for one in found):.0f} s",
        f"made to leave before their minimum residency: {len(hasty)}",
        f"broken invariants: {len(broken)}",
        *(f"  scenario {one.number}: {one.problem}" for one in broken[:10]),
    ]
    return "\n".join(lines), not (broken or passed or hasty)

"""Which of several workers gets a request: the one that has read most of it, within bounds on its load. Pure.

Two bounds, both of the form of consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): no worker
takes more than `ceil(c * (all + 1) / workers)`.

- Of requests in flight, with c = 1.25. Whoever is beyond it is passed over for the next best. A conversation that goes
  on may be one above it: moving it costs its whole prefix, and with few in flight the bound is hardly above the mean.
- Of requests given in the last seconds, with c = 1.125, for those that begin something new. One that shares a system
  prompt with a hundred others goes where there is less to do, and soon every busy worker has that prompt.

Where nothing is known of a prompt, the worker with the fewest requests in flight gets it.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from gateway.scheduling.affinity import Memory, Trail

IN_FLIGHT_BOUND = 1.25
GIVEN_BOUND = 1.125
FEW_GIVEN = 2
"""Requests of the last seconds that do not count: where little is asked one worker does it, and the others may rest."""
WINDOW_SECONDS = 10.0
"""Requests given count for one to two of these."""


class Candidate(Protocol):
    """A worker that could take the request."""

    in_flight: int
    given: int
    """Requests it was given in this window and the one before."""
    memory: Memory


CandidateT = TypeVar("CandidateT", bound=Candidate)


def choose(able: Sequence[CandidateT], ready: Sequence[CandidateT], trail: Trail) -> CandidateT:
    """The worker for a prompt: one of `able` (not empty), by the loads of all that are `ready`."""
    in_flight = given = 0
    for worker in ready:
        in_flight += worker.in_flight
        given += _counted(worker)
    most = _bound(IN_FLIGHT_BOUND, in_flight, len(ready))
    share = _bound(GIVEN_BOUND, given, len(ready))
    found = [(trail.blocks_in(worker.memory), worker) for worker in able if worker.in_flight <= most]
    while found:
        longest = max(blocks for blocks, _ in found)
        best = _best_of([worker for blocks, worker in found if blocks == longest], trail, longest, most, share)
        if best is not None:
            return best
        found = [(blocks, worker) for blocks, worker in found if blocks < longest]
    return min(able, key=_load)


def _best_of(workers: list[CandidateT], trail: Trail, blocks: int, most: int, share: int) -> CandidateT | None:
    """Of workers that have seen as many blocks, the one that has read most; None where none may have the request."""
    best: tuple[int, int, int, int] | None = None
    for index, worker in enumerate(workers):
        depth, point = trail.depth_in(worker.memory, blocks)
        if not depth:
            continue
        goes_on = worker.memory.is_end(point) or (trail.is_cut and point == trail.points()[-1])
        if goes_on or (worker.in_flight < most and _counted(worker) < share):
            rank = (-depth, *_load(worker), index)
            best = rank if best is None else min(best, rank)
    return workers[best[-1]] if best is not None else None


def _bound(factor: float, load: int, workers: int) -> int:
    """Mirrokni et al.: `ceil(c * m / n)` for m balls, this one among them, in n bins."""
    return -int(-factor * (load + 1) // workers)


def _counted(worker: Candidate) -> int:
    return worker.given - FEW_GIVEN if worker.given > FEW_GIVEN else 0


def _load(worker: Candidate) -> tuple[int, int]:
    return worker.in_flight, _counted(worker)

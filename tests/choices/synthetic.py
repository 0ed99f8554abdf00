"""A workload against the gateway's own choice and its rivals in simulated time: no process, no socket, no clock.

The choice is `Demand` itself, asked with what `peek` reads out of the body, and its leases come back when the
simulated engine has answered. Engines have the simulator's prefix cache.
"""

import heapq
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.proxy.peek import peek
from gateway.scheduling.demand import Demand
from gateway.scheduling.slots import Lease
from gateway.types import Wish
from tests.choices.workload import Conversation, Outcome, Shape, conversations, text
from tests.engine_simulator.prefix_cache import PrefixCache
from tests.engine_simulator.text import BYTES_PER_TOKEN, render
from tests.support.planning import template
from worker_manager.contract import ObservedWorker, Residency, WorkerState, spec_hash

PER_WORKER = 64
PREFILL_TOKENS_PER_SECOND = 8_000.0
BYTES_PER_SECOND = 240.0
"""Of an answer: 60 to 80 tokens a second."""
THINK_SECONDS = 2.0
"""Mean time between an answer and the next question."""

Done = Callable[[], None]
Pick = Callable[[bytes], tuple[int, Done]]
"""Gives a body to a worker: its number, and what to call when the answer is there."""


class Time:
    """Simulated seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Give the time, as `Demand` asks for it."""
        return self.now


def hostler(workers: int, time: Time) -> Pick:
    """Let the gateway choose."""
    demand = Demand(Path("/engines"), 10_000, time)
    demand.set_endpoints({"a": PER_WORKER})
    demand.set_workers(_seen(number) for number in range(workers))

    def pick(body: bytes) -> tuple[int, Done]:
        lease = demand.try_acquire("a", wish=Wish(peek(body, b"application/json").prefix))
        assert isinstance(lease, Lease), "no worker is full"
        given = lease
        return int(given.slot.id), lambda: demand.release(given)

    return pick


def round_robin(workers: int, _time: Time) -> Pick:
    """One after the other."""
    turn = itertools.count()
    return lambda _body: (next(turn) % workers, lambda: None)


def at_random(workers: int, _time: Time) -> Pick:
    """Whichever."""
    source = random.Random(7)  # noqa: S311 - repeatable, not secret
    return lambda _body: (source.randrange(workers), lambda: None)


def least_outstanding(workers: int, _time: Time) -> Pick:
    """The one with the fewest requests in flight; of several the one that has waited longest for a request."""
    in_flight = [0] * workers
    last = [0] * workers
    turn = itertools.count(1)

    def pick(_body: bytes) -> tuple[int, Done]:
        number = min(range(workers), key=lambda worker: (in_flight[worker], last[worker]))
        in_flight[number] += 1
        last[number] = next(turn)

        def done() -> None:
            in_flight[number] -= 1

        return number, done

    return pick


POLICIES: dict[str, Callable[[int, Time], Pick]] = {
    "Hostler": hostler,
    "round robin": round_robin,
    "least outstanding": least_outstanding,
    "random": at_random,
}


def run(shape: Shape, policy: Callable[[int, Time], Pick], workers: int, cache_blocks: int) -> Outcome:
    """Carry out a workload; `cache_blocks` is the capacity of all caches together."""
    return _Run(shape, policy, workers, cache_blocks).outcome()


class _Run:
    """Events in simulated time: a user asks, an engine has answered."""

    def __init__(self, shape: Shape, policy: Callable[[int, Time], Pick], workers: int, cache_blocks: int) -> None:
        self._time = Time()
        self._pick = policy(workers, self._time)
        self._caches = [PrefixCache(cache_blocks // workers) for _ in range(workers)]
        self._requests = [0] * workers
        self._source = random.Random(shape.seed)  # noqa: S311 - repeatable, not secret
        self._answer_bytes = shape.answer_bytes
        self._to_come = iter(conversations(shape))
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for _ in range(shape.users):
            self._next_conversation()

    def outcome(self) -> Outcome:
        while self._events:
            self._time.now, _, happen = heapq.heappop(self._events)
            happen()
        queries = sum(cache.queries for cache in self._caches)
        return Outcome(sum(cache.hits for cache in self._caches) / queries, tuple(self._requests))

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._time.now + seconds, next(self._order), happen))

    def _think(self) -> float:
        return self._source.expovariate(1 / THINK_SECONDS)

    def _next_conversation(self) -> None:
        talk = next(self._to_come, None)
        if talk is not None:
            self._after(self._think(), lambda: self._ask(talk))

    def _ask(self, talk: Conversation) -> None:
        messages = talk.ask()
        body = json.dumps({"model": "a", "messages": messages}, separators=(",", ":")).encode()
        worker, done = self._pick(body)
        self._requests[worker] += 1
        prompt = render(messages)
        cached = self._caches[worker].take(prompt, BYTES_PER_TOKEN)
        answer = text(self._source, self._source.randint(*self._answer_bytes))
        prefill = (len(prompt) / BYTES_PER_TOKEN - cached) / PREFILL_TOKENS_PER_SECOND

        def answered() -> None:
            done()
            talk.hear(answer)
            if talk.is_over():
                self._next_conversation()
            else:
                self._after(self._think(), lambda: self._ask(talk))

        self._after(prefill + len(answer) / BYTES_PER_SECOND, answered)


def _seen(number: int) -> ObservedWorker:
    spec = msgspec.structs.replace(template("a"), id=str(number))
    return ObservedWorker(
        spec=spec,
        spec_hash=spec_hash(spec),
        state=WorkerState.READY,
        residency=Residency.HOT,
        since=0.0,
        socket=f"{number}/engine.sock",
    )

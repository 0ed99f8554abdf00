"""What was taken within the last minute: a sliding one, not the calendar's and not an average. Pure.

In no 60 seconds in a row more than `limit` units are admitted. Time is counted in ticks of 10 ms, and what was taken in
one tick is one number, so that a window of any limit is some thousand numbers: a unit is free again 60 seconds and at
most two ticks after it was taken.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Literal, NamedTuple

TICKS_A_SECOND = 100
TICKS = 60 * TICKS_A_SECOND + 1
"""For which a unit stays taken: one more than a minute has, for those that were taken late in their tick."""

What = Literal["requests", "tokens"]
State = tuple[int, int, float]
"""What is left of a limit, never less than 0; the limit; the seconds until all of it is free."""


class Taken(NamedTuple):
    """What was taken within a minute: amounts by the whole seconds since."""

    requests: list[tuple[int, int]]
    tokens: list[tuple[int, int]]


class Bucket:
    """What was taken in one tick."""

    __slots__ = ("free", "requests", "tick", "tokens")

    def __init__(self, tick: int, requests: int, tokens: int) -> None:
        self.tick = tick
        self.requests = requests
        self.tokens = tokens
        self.free = (tick + TICKS) / TICKS_A_SECOND
        """When it is a minute old; seconds."""


NEVER = Bucket(-TICKS, 0, 0)
"""Where the last one is asked for and there is none: free since the clock began."""


def tick_of(now: float) -> int:
    """The tick in which a time lies."""
    return int(now * TICKS_A_SECOND)


class Window:
    """At most so many requests, and at most so many tokens, in any minute; None: as many as there are.

    Both in one, for they are taken together. Times are seconds, or ticks, of one clock that does not go back.
    """

    __slots__ = ("_buckets", "_ends", "_last_request", "_last_tokens", "_requests", "_tokens", "requests", "tokens")

    def __init__(self, requests: int | None, tokens: int | None, buckets: Iterable[Bucket] = ()) -> None:
        self.requests = requests
        """The limit."""
        self.tokens = tokens
        """The limit."""
        self._buckets = deque(buckets)
        self._count()

    def _count(self) -> None:
        buckets = self._buckets
        self._requests = sum(bucket.requests for bucket in buckets)
        self._tokens = sum(bucket.tokens for bucket in buckets)
        self._last_request = next((bucket for bucket in reversed(buckets) if bucket.requests), NEVER)
        self._last_tokens = next((bucket for bucket in reversed(buckets) if bucket.tokens), NEVER)
        """Where tokens were last taken, though it may have been 0 of them."""
        self._ends = buckets[0].tick + TICKS if buckets else math.inf
        """The tick in which the oldest bucket is a minute old: nothing is to be forgotten before."""

    def limited(self, requests: int | None, tokens: int | None) -> "Window":
        """It with other limits: of one that stays, what was taken stays taken; one that is new begins empty."""
        if self.requests is None:
            for bucket in self._buckets:
                bucket.requests = 0
            self._requests, self._last_request = 0, NEVER
        if self.tokens is None and tokens is not None:
            # another one, in which requests that are under way since before have nothing to settle
            return Window(requests, tokens, [Bucket(bucket.tick, bucket.requests, 0) for bucket in self._buckets])
        self.requests, self.tokens = requests, tokens
        return self

    def admits(self, tokens: int, tick: int) -> bool:
        """Whether one request and so many tokens can be taken now: what `fits` says of both."""
        if tick >= self._ends:
            self._forget(tick)
        requests, most = self.requests, self.tokens
        return (requests is None or self._requests < requests) and (most is None or self._tokens + tokens <= most)

    def take(self, tokens: int, tick: int) -> Bucket:
        """Take one request and so many tokens, whether they fit or not."""
        if tick >= self._ends:
            self._forget(tick)
        self._requests += 1
        self._tokens += tokens
        bucket = self._last_tokens
        if bucket.tick == tick:
            bucket.requests += 1
            bucket.tokens += tokens
        else:
            bucket = self._last_tokens = self._add(Bucket(tick, 1, tokens))
        self._last_request = bucket
        return bucket

    def settle(self, bucket: Bucket, reserved: int, tokens: int, tick: int) -> None:
        """What a request took in truth: less is given back to when it was taken, more is taken now."""
        if tick >= self._ends:
            self._forget(tick)
        more = tokens - reserved
        if more <= 0:
            if bucket.tick > tick - TICKS:
                self._tokens += more
                bucket.tokens += more
            return
        self._tokens += more
        if self._last_tokens.tick == tick:
            self._last_tokens.tokens += more
        else:
            self._last_tokens = self._add(Bucket(tick, 0, more))

    def _add(self, bucket: Bucket) -> Bucket:
        if not self._buckets:
            self._ends = bucket.tick + TICKS
        self._buckets.append(bucket)
        return bucket

    def states(self, now: float) -> tuple[State | None, State | None]:
        """Of requests and of tokens; None where they are not limited."""
        if now * TICKS_A_SECOND >= self._ends:
            self._forget(tick_of(now))
        requests, tokens = self.requests, self.tokens
        return (
            None
            if requests is None
            else (max(0, requests - self._requests), requests, max(0.0, self._last_request.free - now)),
            None if tokens is None else (max(0, tokens - self._tokens), tokens, max(0.0, self._last_tokens.free - now)),
        )

    # of one of both

    def _of(self, what: What) -> tuple[float, int, Bucket]:
        """The limit, what is taken of it, and when it was last."""
        if what == "requests":
            limit, taken, last = self.requests, self._requests, self._last_request
        else:
            limit, taken, last = self.tokens, self._tokens, self._last_tokens
        return math.inf if limit is None else limit, taken, last

    def remaining(self, what: What, now: float) -> float:
        """Units that are free; never less than 0, though more may have been used than was estimated."""
        self._forget(tick_of(now))
        limit, taken, _ = self._of(what)
        return max(0, limit - taken)

    def fits(self, what: What, amount: int, now: float) -> bool:
        """Whether so much can be taken now."""
        self._forget(tick_of(now))
        limit, taken, _ = self._of(what)
        return taken + amount <= limit

    def seconds_until(self, what: What, amount: int, now: float) -> float:
        """Seconds until so much fits if nobody takes anything meanwhile; of more than the limit, until all is free."""
        self._forget(tick_of(now))
        limit, taken, last = self._of(what)
        excess = taken + amount - limit
        if excess <= 0:
            return 0.0
        for bucket in self._buckets:
            excess -= getattr(bucket, what)
            if excess <= 0:
                return max(0.0, bucket.free - now)
        return max(0.0, last.free - now)

    def taken(self, now: float) -> Taken:
        """What is taken of what is limited, by how many whole seconds ago: never longer ago than it was."""
        tick = tick_of(now)
        self._forget(tick)
        requests: dict[int, int] = {}
        tokens: dict[int, int] = {}
        for bucket in self._buckets:
            age = (tick - bucket.tick) // TICKS_A_SECOND
            if bucket.requests and self.requests is not None:
                requests[age] = requests.get(age, 0) + bucket.requests
            if bucket.tokens and self.tokens is not None:
                tokens[age] = tokens.get(age, 0) + bucket.tokens
        return Taken(list(requests.items()), list(tokens.items()))

    def put_back(self, taken: Taken, passed: float, now: float) -> None:
        """Take what another window had taken when it was asked, `passed` seconds ago; before all else."""
        requests = dict(taken.requests) if self.requests is not None else {}
        tokens = dict(taken.tokens) if self.tokens is not None else {}
        for age in sorted(requests.keys() | tokens.keys(), reverse=True):
            if age + passed < TICKS / TICKS_A_SECOND:
                # one tick late: nobody knows where in its tick it was taken
                tick = tick_of(now - passed - age) + 1
                self._buckets.append(Bucket(tick, requests.get(age, 0), tokens.get(age, 0)))
        self._count()

    def _forget(self, tick: int) -> None:
        """Let go of what is more than a minute old."""
        buckets = self._buckets
        while buckets and buckets[0].tick <= tick - TICKS:
            old = buckets.popleft()
            self._requests -= old.requests
            self._tokens -= old.tokens
        self._ends = buckets[0].tick + TICKS if buckets else math.inf

"""What was taken within the last minute: a sliding one, not the calendar's and not an average. Pure.

In no 60 seconds in a row more than `limit` units are admitted. Time is counted in ticks of 10 ms, and what was taken in
one tick is one number, so that a window of any limit is some thousand numbers: a unit is free again 60 seconds and at
most two ticks after it was taken.
"""

import math
from collections import deque
from collections.abc import Iterable

TICKS_A_SECOND = 100
TICKS = 60 * TICKS_A_SECOND + 1
"""For which a unit stays taken: one more than a minute has, for those that were taken late in their tick."""


class Bucket:
    """What was taken in one tick."""

    __slots__ = ("amount", "free", "tick", "window")

    def __init__(self, window: "Window", tick: int, amount: int) -> None:
        self.window = window
        """Of which it was taken."""
        self.tick = tick
        self.amount = amount
        self.free = (tick + TICKS) / TICKS_A_SECOND
        """When it is a minute old; seconds."""


def tick_of(now: float) -> int:
    """The tick in which a time lies."""
    return int(now * TICKS_A_SECOND)


class Window:
    """At most `limit` units in any minute. Times are seconds, or ticks, of one clock that does not go back."""

    __slots__ = ("_buckets", "_ends", "_taken", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buckets: deque[Bucket] = deque()
        self._taken = 0
        self._ends = math.inf
        """The tick in which the oldest bucket is a minute old: nothing is to be forgotten before."""

    def remaining(self, now: float) -> int:
        """Units that are free; never less than 0, though more may have been used than was estimated."""
        self._forget(tick_of(now))
        return max(0, self.limit - self._taken)

    def fits(self, amount: int, tick: int) -> bool:
        """Whether so much can be taken now."""
        if tick >= self._ends:
            self._forget(tick)
        return self._taken + amount <= self.limit

    def take(self, amount: int, tick: int) -> Bucket:
        """Take so much, whether it fits or not."""
        if tick >= self._ends:
            self._forget(tick)
        self._taken += amount
        buckets = self._buckets
        if buckets:
            bucket = buckets[-1]
            if bucket.tick == tick:
                bucket.amount += amount
                return bucket
        else:
            self._ends = tick + TICKS
        bucket = Bucket(self, tick, amount)
        buckets.append(bucket)
        return bucket

    def settle(self, bucket: Bucket, reserved: int, amount: int, tick: int) -> None:
        """What a request took in truth: less is given back to when it was taken, more is taken now."""
        if amount > reserved:
            self.take(amount - reserved, tick)
            return
        if tick >= self._ends:
            self._forget(tick)
        if bucket.tick > tick - TICKS:
            self._taken -= reserved - amount
            bucket.amount -= reserved - amount

    def seconds_until(self, amount: int, now: float) -> float:
        """Seconds until so much fits if nobody takes anything meanwhile; of more than the limit, until all is free."""
        self._forget(tick_of(now))
        excess = self._taken + amount - self.limit
        if excess <= 0:
            return 0.0
        for bucket in self._buckets:
            excess -= bucket.amount
            if excess <= 0:
                return max(0.0, bucket.free - now)
        return self.seconds_until_free(now)

    def seconds_until_free(self, now: float) -> float:
        """Seconds until nothing is taken any more."""
        self._forget(tick_of(now))
        return max(0.0, self._buckets[-1].free - now) if self._buckets else 0.0

    def state(self, now: float) -> tuple[int, int, float]:
        """`remaining`, the limit, and the seconds until all of it is free."""
        if now * TICKS_A_SECOND >= self._ends:
            self._forget(tick_of(now))
        left = self.limit - self._taken
        seconds = self._buckets[-1].free - now if self._buckets else 0.0
        return max(0, left), self.limit, max(0.0, seconds)

    def ages(self, now: float) -> list[tuple[int, int]]:
        """What is taken, by how many whole seconds ago: never longer ago than it was."""
        tick = tick_of(now)
        self._forget(tick)
        sums: dict[int, int] = {}
        for bucket in self._buckets:
            if bucket.amount:
                age = (tick - bucket.tick) // TICKS_A_SECOND
                sums[age] = sums.get(age, 0) + bucket.amount
        return list(sums.items())

    def put_back(self, ages: Iterable[tuple[int, int]], passed: float, now: float) -> None:
        """Take what another window had taken when its ages were asked for, `passed` seconds ago; before all else."""
        for age, amount in sorted(ages, reverse=True):
            if age + passed < TICKS / TICKS_A_SECOND:
                # one tick late: nobody knows where in its tick it was taken
                self._buckets.append(Bucket(self, tick_of(now - passed - age) + 1, amount))
                self._taken += amount
        self._ends = self._buckets[0].tick + TICKS if self._buckets else math.inf

    def _forget(self, tick: int) -> None:
        """Let go of what is more than a minute old."""
        buckets = self._buckets
        while buckets and buckets[0].tick <= tick - TICKS:
            self._taken -= buckets.popleft().amount
        self._ends = buckets[0].tick + TICKS if buckets else math.inf

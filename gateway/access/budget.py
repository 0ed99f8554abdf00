"""A budget and what is spent of it: reserved before a request, settled after it. Pure.

Periods are numbered days or months in UTC, so a restart knows which one it is in. Their numbers only ever grow: a clock
that goes back finds the same period, and what was spent in it.
"""

import math
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.types import Budget, Period

DAY_SECONDS = 86_400
MONTHS = 12


class Spent(NamedTuple):
    """What is stored of an account."""

    period: Period
    number: int
    """Which day, which month; 0 where there is only one."""
    tokens: int


def number_of(period: Period, now: float) -> int:
    """The number of the period at a time (Unix seconds): days since 1970, months since the year 0, or 0."""
    if period is Period.TOTAL:
        return 0
    if period is Period.DAY:
        return int(now // DAY_SECONDS)
    day = datetime.fromtimestamp(now, UTC)
    return day.year * MONTHS + day.month - 1


def end_of(period: Period, number: int) -> float | None:
    """When a period ends, Unix seconds; None: never."""
    if period is Period.TOTAL:
        return None
    if period is Period.DAY:
        return float((number + 1) * DAY_SECONDS)
    year, month = divmod(number + 1, MONTHS)
    return datetime(year, month + 1, 1, tzinfo=UTC).timestamp()


class Account:
    """One key's budget. Times are Unix seconds."""

    __slots__ = ("_ends", "_number", "_spent", "budget", "key_id", "reserved")

    def __init__(self, key_id: str, budget: Budget, now: float, spent: Spent | None = None) -> None:
        self.key_id = key_id
        self.budget = budget
        self.reserved = 0
        """Tokens of requests that are under way."""
        self._number = self._spent = 0
        self._ends = math.inf
        goes_on = spent is not None and spent.period is budget.period
        self._begin(spent if spent is not None and goes_on else self.fresh(now))

    def _begin(self, spent: Spent) -> None:
        _, self._number, self._spent = spent
        ends = end_of(spent.period, spent.number)
        self._ends = math.inf if ends is None else ends

    def change(self, budget: Budget, now: float) -> None:
        """Another budget from now on. What was spent stays, unless it is for another kind of period."""
        other = budget.period is not self.budget.period
        self.budget = budget
        if other:
            self.reset(now)

    def fresh(self, now: float) -> Spent:
        """Nothing spent, in the period that the clock says."""
        return Spent(self.budget.period, number_of(self.budget.period, now), 0)

    def reset(self, now: float) -> None:
        """Begin anew."""
        self._begin(self.fresh(now))

    def tokens(self, now: float) -> int:
        """What is spent in the newest period that this account has seen."""
        if now >= self._ends:
            self.reset(now)
        return self._spent

    def spent(self, now: float) -> Spent:
        """The same, as it is stored."""
        tokens = self.tokens(now)
        return Spent(self.budget.period, self._number, tokens)

    def fits(self, tokens: int, now: float) -> bool:
        """Whether so much can be reserved."""
        return self.tokens(now) + self.reserved + tokens <= self.budget.tokens

    def is_spent(self, tokens: int, now: float) -> bool:
        """Whether so much will not fit in this period whatever becomes of the requests that are under way."""
        return self.tokens(now) + tokens > self.budget.tokens

    def reserve(self, tokens: int) -> None:
        """Put tokens aside for a request."""
        self.reserved += tokens

    def settle(self, reserved: int, tokens: int, now: float) -> None:
        """The request is over: what it took is spent, in the period that is now."""
        self.reserved -= reserved
        self._spent = self.tokens(now) + tokens

    def resets_at(self, now: float) -> float | None:
        """When the next period begins, Unix seconds; None: never."""
        self.tokens(now)
        return self._ends if self._ends < math.inf else None

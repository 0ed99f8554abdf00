"""A budget and what is spent of it: reserved before a request, settled after it. Pure.

Periods are numbered days or months in UTC, so a restart knows which one it is in. Their numbers only ever grow: a clock
that goes back finds the same period, and what was spent in it.
"""

import math
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.prices import billionths
from gateway.types import Budget, Period

DAY_SECONDS = 86_400
MONTHS = 12


class Spent(NamedTuple):
    """What is stored of an account."""

    period: Period
    number: int
    """Which day, which month; 0 where there is only one."""
    tokens: int
    cost: int = 0
    """Billionths of a unit."""


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

    __slots__ = (
        "_cost",
        "_ends",
        "_most_cost",
        "_most_tokens",
        "_number",
        "_tokens",
        "budget",
        "doubt",
        "doubt_cost",
        "key_id",
        "reserved",
        "reserved_cost",
    )

    def __init__(self, key_id: str, budget: Budget, now: float, spent: Spent | None = None) -> None:
        self.key_id = key_id
        self._bound(budget)
        self.reserved = 0
        """Tokens of requests that are under way."""
        self.reserved_cost = 0
        """What they may cost, billionths of a unit."""
        self.doubt = self.doubt_cost = 0
        """What they may take beyond, if they were guessed too low."""
        self._number = self._tokens = self._cost = 0
        self._ends = math.inf
        goes_on = spent is not None and spent.period is budget.period
        self._begin(spent if spent is not None and goes_on else self.fresh(now))

    def _bound(self, budget: Budget) -> None:
        self.budget = budget
        self._most_tokens = math.inf if budget.tokens is None else budget.tokens
        self._most_cost = math.inf if budget.cost is None else billionths(budget.cost)

    def _begin(self, spent: Spent) -> None:
        _, self._number, self._tokens, self._cost = spent
        ends = end_of(spent.period, spent.number)
        self._ends = math.inf if ends is None else ends

    def change(self, budget: Budget, now: float) -> None:
        """Another budget from now on. What was spent stays, unless it is for another kind of period."""
        other = budget.period is not self.budget.period
        self._bound(budget)
        if other:
            self.reset(now)

    def fresh(self, now: float) -> Spent:
        """Nothing spent, in the period that the clock says."""
        return Spent(self.budget.period, number_of(self.budget.period, now), 0)

    def reset(self, now: float) -> None:
        """Begin anew."""
        self._begin(self.fresh(now))

    def _look(self, now: float) -> None:
        """Begin anew where the newest period that this account has seen is over."""
        if now >= self._ends:
            self.reset(now)

    def spent(self, now: float) -> Spent:
        """What is spent in the newest period that this account has seen, as it is stored."""
        self._look(now)
        return Spent(self.budget.period, self._number, self._tokens, self._cost)

    def tokens_fit(self, tokens: int, now: float) -> bool:
        """Whether so many tokens can be reserved."""
        self._look(now)
        return self._tokens + self.reserved + tokens <= self._most_tokens

    def fits(self, tokens: int, now: float, cost: int = 0) -> bool:
        """Whether both can be reserved."""
        if now >= self._ends:
            self.reset(now)
        return self._tokens + self.reserved + tokens <= self._most_tokens and (
            not cost or self._cost + self.reserved_cost + cost <= self._most_cost
        )

    def is_sure(self, tokens: int, cost: int, doubt: int, doubt_cost: int) -> bool:
        """Whether what `fits` does even if all that is under way was guessed too low; or nothing is under way.

        So when little is left, what may turn out larger goes alone: the budget is overshot by one request at most.
        """
        if not self.reserved and not self.reserved_cost:
            return True
        room = self._most_tokens - self._tokens - self.reserved - tokens
        room_cost = self._most_cost - self._cost - self.reserved_cost - cost
        return self.doubt + doubt <= room and (not cost or self.doubt_cost + doubt_cost <= room_cost)

    def admits(self, tokens: int, now: float, cost: int, doubt: int, doubt_cost: int) -> bool:
        """What `fits`, and `is_sure` unless it takes no tokens: the quick way for nearly all requests."""
        if now >= self._ends:
            self.reset(now)
        room = self._most_tokens - self._tokens - self.reserved - tokens
        room_cost = self._most_cost - self._cost - self.reserved_cost - cost
        if room < 0 or (cost and room_cost < 0):
            return False
        if self.doubt + doubt <= room and (not cost or self.doubt_cost + doubt_cost <= room_cost):
            return True
        return not tokens or not (self.reserved or self.reserved_cost)

    def is_spent(self, tokens: int, now: float, cost: int = 0) -> bool:
        """Whether so much will not fit in this period whatever becomes of the requests that are under way."""
        self._look(now)
        return self._tokens + tokens > self._most_tokens or (cost > 0 and self._cost + cost > self._most_cost)

    def can_hold(self, tokens: int, cost: int = 0) -> bool:
        """Whether so much fits into a period of which nothing is spent."""
        return tokens <= self._most_tokens and cost <= self._most_cost

    def cut(self, least: int, likely: int) -> int:
        """Billionths to reserve for what costs so much at least and likely so much: no more than can ever fit."""
        return max(least, likely if likely <= self._most_cost else int(self._most_cost))

    def reserve(self, tokens: int, cost: int = 0, doubt: int = 0, doubt_cost: int = 0) -> None:
        """Put so much aside for a request."""
        self.reserved += tokens
        self.reserved_cost += cost
        self.doubt += doubt
        self.doubt_cost += doubt_cost

    def settle(
        self,
        reserved: int,
        tokens: int,
        now: float,
        reserved_cost: int = 0,
        cost: int = 0,
        doubt: int = 0,
        doubt_cost: int = 0,
    ) -> None:
        """The request is over: what it took is spent, in the period that is now, and there is no doubt about it."""
        if now >= self._ends:
            self.reset(now)
        self.reserved -= reserved
        self.reserved_cost -= reserved_cost
        self.doubt -= doubt
        self.doubt_cost -= doubt_cost
        self._tokens += tokens
        self._cost += cost

    def resets_at(self, now: float) -> float | None:
        """When the next period begins, Unix seconds; None: never."""
        self._look(now)
        return self._ends if self._ends < math.inf else None

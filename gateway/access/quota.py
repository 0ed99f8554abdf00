"""What one key or one endpoint may take: requests and tokens a minute, requests at once, a budget. Pure."""

import math
from typing import NamedTuple

import msgspec

from gateway.access.budget import Account
from gateway.access.window import Bucket, Window, tick_of
from gateway.prices import units
from gateway.types import Estimate, Limits

NO_LIMITS = Limits()
UNKNOWN_SECONDS = 1.0
"""Until a request under way ends: nobody knows."""


class Now(msgspec.Struct, frozen=True, gc=False):
    """The time on two clocks, seconds: one that never goes back for limits, Unix time for budgets."""

    steady: float
    unix: float


class Refusal(NamedTuple):
    """Why a request can't go on now."""

    why: str
    seconds: float
    """Until it is worth another try; infinite: it never will be."""
    can_wait: bool
    """Whether that comes soon, and by itself."""
    is_budget: bool = False


class Hold(msgspec.Struct, frozen=True, gc=False):
    """What a request under way has taken of one quota; `settle` must follow, once."""

    quota: "Quota"
    bucket: Bucket | None
    account: Account | None
    tokens: int
    cost: int
    """Billionths of a unit."""
    doubt: int
    """What it may take beyond, in tokens."""

    def settle(self, tokens: int, tick: int, unix: float, cost: int = 0) -> None:
        """The request is over, and took so many tokens, and billionths of a unit, in truth."""
        self.quota.in_flight -= 1
        reserved = self.tokens
        if self.bucket is not None:
            self.bucket.window.settle(self.bucket, reserved, tokens, tick)
        if self.account is not None:
            doubt_cost = _more(self.cost, reserved, self.doubt) if self.cost else 0
            self.account.settle(reserved, tokens, unix, self.cost, cost, self.doubt, doubt_cost)


class Taken(NamedTuple):
    """What was taken within a minute: amounts by the whole seconds since."""

    requests: list[tuple[int, int]]
    tokens: list[tuple[int, int]]


class Quota:
    """The limits of one key or endpoint, and what is taken of them."""

    def __init__(self, whose: str, limits: Limits | None, account: Account | None = None) -> None:
        self.whose = whose
        """The subject of a sentence: "The key 'app'"."""
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self.account = account
        self.in_flight = 0
        self.waiting = 0
        """Requests that wait for this quota, or for another one beside it."""
        self._concurrency: int | None = None
        self.limit(limits)

    def limit(self, limits: Limits | None) -> None:
        """Set other limits. What was taken within the last minute stays taken."""
        limits = limits or NO_LIMITS
        self.requests = _window(self.requests, limits.requests_per_minute)
        self.tokens = _window(self.tokens, limits.tokens_per_minute)
        self._concurrency = limits.concurrency

    def amount(self, estimate: Estimate) -> int:
        """Tokens to reserve: an output that nobody asked for is cut to what can ever fit."""
        tokens = estimate.likely
        if tokens == estimate.least:
            return tokens
        if self.tokens is not None and self.tokens.limit < tokens:
            tokens = self.tokens.limit
        if self.account is not None and (most := self.account.budget.tokens) is not None and most < tokens:
            tokens = most
        return max(estimate.least, tokens)

    def cost(self, estimate: Estimate) -> int:
        """Billionths of a unit to reserve; 0 where no budget asks for the cost."""
        account, price = self.account, estimate.price
        if price is None or account is None or account.budget.cost is None:
            return 0
        prompt = estimate.prompt
        least = price.of_estimate(prompt, estimate.least - prompt)
        if estimate.likely == estimate.least:
            return least
        return account.cut(least, price.of_estimate(prompt, estimate.likely - prompt))

    def admits(self, tokens: int, tick: int, unix: float, cost: int = 0, doubt: int = 0) -> bool:
        """Whether there is no `refusal`, in a tick of the windows' clock; the quick way for nearly all requests."""
        account, requests, window = self.account, self.requests, self.tokens
        return (
            (account is None or account.admits(tokens, unix, cost, doubt, _more(cost, tokens, doubt) if cost else 0))
            and (requests is None or requests.fits(1, tick))
            and (window is None or window.fits(tokens, tick))
            and (self._concurrency is None or self.in_flight < self._concurrency)
        )

    def refusal(self, tokens: int, now: Now, cost: int = 0, doubt: int = 0) -> Refusal | None:
        """Why a request that may take so much, and `doubt` tokens beyond, can't go on now; None if it can."""
        return self._over_budget(tokens, now, cost, doubt) or self._too_fast(tokens, now) or self._too_many()

    def _over_budget(self, tokens: int, now: Now, cost: int, doubt: int) -> Refusal | None:
        account = self.account
        if account is None:
            return None
        if account.fits(tokens, now.unix, cost):
            if not tokens or account.is_sure(tokens, cost, doubt, _more(cost, tokens, doubt)):
                return None
            why = (
                f"{self.whose} has little left of its budget, and this request may take up to {doubt} tokens more than "
                f"the {tokens} that are reserved for it (max_tokens would say how many), so it goes when those under "
                "way have ended"
            )
            return Refusal(why, UNKNOWN_SECONDS, can_wait=True, is_budget=True)
        why = self._spent(account, tokens, now.unix, cost)
        if not account.is_spent(tokens, now.unix, cost):
            return Refusal(why, UNKNOWN_SECONDS, can_wait=True, is_budget=True)
        ends = account.resets_at(now.unix)
        seconds = ends - now.unix if ends is not None and account.can_hold(tokens, cost) else math.inf
        return Refusal(why, seconds, can_wait=False, is_budget=True)

    def _spent(self, account: Account, tokens: int, unix: float, cost: int) -> str:
        budget, spent = account.budget, account.spent(unix)
        if not account.tokens_fit(tokens, unix):
            return (
                f"{self.whose} has a budget of {budget.tokens} tokens ({budget.period}), of which {spent.tokens} are "
                f"spent and {account.reserved} reserved by requests under way; this one may take {tokens}"
            )
        return (
            f"{self.whose} has a budget of {budget.cost:g} for what its requests cost ({budget.period}), of which "
            f"{units(spent.cost):g} are spent and {units(account.reserved_cost):g} reserved by requests under way; "
            f"this one may cost {units(cost):g}"
        )

    def _too_fast(self, tokens: int, now: Now) -> Refusal | None:
        tick = tick_of(now.steady)
        if self.requests is not None and not self.requests.fits(1, tick):
            return self._too_much("requests", self.requests, 1, now.steady)
        if self.tokens is not None and not self.tokens.fits(tokens, tick):
            return self._too_much("tokens", self.tokens, tokens, now.steady)
        return None

    def _too_much(self, what: str, window: Window, amount: int, now: float) -> Refusal:
        why = (
            f"{self.whose} may take {window.limit} {what} a minute, and {window.remaining(now)} are left; "
            f"this request may take {amount}"
        )
        if amount > window.limit:
            return Refusal(why, math.inf, can_wait=False)
        return Refusal(why, window.seconds_until(amount, now), can_wait=True)

    def _too_many(self) -> Refusal | None:
        if self._concurrency is None or self.in_flight < self._concurrency:
            return None
        why = f"{self.whose} may have {self._concurrency} requests under way at once, and {self.in_flight} are"
        return Refusal(why, UNKNOWN_SECONDS, can_wait=True)

    def take(self, tokens: int, tick: int, cost: int = 0, doubt: int = 0) -> Hold:
        """Let a request go on; `settle` must follow, with the same amounts."""
        self.in_flight += 1
        account, requests, window = self.account, self.requests, self.tokens
        if account is not None:
            account.reserve(tokens, cost, doubt, _more(cost, tokens, doubt) if cost else 0)
        if requests is not None:
            requests.take(1, tick)
        bucket = window.take(tokens, tick) if window is not None else None
        return Hold(self, bucket, account, tokens, cost, doubt)

    def taken(self, now: float) -> Taken:
        """What is taken of the last minute."""
        return Taken(
            self.requests.ages(now) if self.requests is not None else [],
            self.tokens.ages(now) if self.tokens is not None else [],
        )

    def put_back(self, taken: Taken, passed: float, now: float) -> None:
        """Take what was taken of this quota `passed` seconds ago, in another life of the gateway."""
        if self.requests is not None:
            self.requests.put_back(taken.requests, passed, now)
        if self.tokens is not None:
            self.tokens.put_back(taken.tokens, passed, now)


def _more(cost: int, tokens: int, doubt: int) -> int:
    """What so many tokens beyond may cost, where so many cost so much."""
    return cost * doubt // tokens if cost and tokens else 0


def _window(old: Window | None, limit: int | None) -> Window | None:
    if limit is None:
        return None
    if old is None:
        return Window(limit)
    old.limit = limit
    return old

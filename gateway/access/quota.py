"""What one key or one endpoint may take: requests and tokens a minute, requests at once, a budget. Pure."""

import math
from typing import NamedTuple

import msgspec

from gateway.access.budget import Account
from gateway.access.window import Bucket, Taken, What, Window
from gateway.prices import units
from gateway.types import Estimate, Limits

NO_LIMITS = Limits()
UNKNOWN_SECONDS = 1.0
"""Until a request under way ends: nobody knows."""


Asks = tuple[int, int, int, int]
"""What a request reserves: tokens, and their cost in billionths; tokens that it may take beyond, and their cost."""


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
    window: Window | None
    bucket: Bucket | None
    account: Account | None
    asks: Asks

    def settle(self, tokens: int, tick: int, unix: float, cost: int = 0) -> None:
        """The request is over, and took so many tokens, and billionths of a unit, in truth."""
        reserved, reserved_cost, doubt, doubt_cost = self.asks
        self.quota.in_flight -= 1
        if self.window is not None and self.bucket is not None:
            self.window.settle(self.bucket, reserved, tokens, tick)
        if self.account is not None:
            self.account.settle(reserved, tokens, unix, reserved_cost, cost, doubt, doubt_cost)


class Quota:
    """The limits of one key or endpoint, and what is taken of them."""

    def __init__(self, whose: str, limits: Limits | None, account: Account | None = None) -> None:
        self.whose = whose
        """The subject of a sentence: "The key 'app'"."""
        self.window: Window | None = None
        self.account = account
        self.in_flight = 0
        self.waiting = 0
        """Requests that wait for this quota, or for another one beside it."""
        self._concurrency: int | None = None
        self.limit(limits)

    def limit(self, limits: Limits | None) -> None:
        """Set other limits. What was taken within the last minute stays taken."""
        limits = limits or NO_LIMITS
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        if requests is None and tokens is None:
            self.window = None
        else:
            self.window = (self.window or Window(requests, tokens)).limited(requests, tokens)
        self._concurrency = limits.concurrency

    def amount(self, estimate: Estimate) -> int:
        """Tokens to reserve: an output that nobody asked for is cut to what can ever fit."""
        tokens = estimate.likely
        if tokens == estimate.least:
            return tokens
        if self.window is not None and (limit := self.window.tokens) is not None and limit < tokens:
            tokens = limit
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

    def admits(self, asks: Asks, tick: int, unix: float) -> bool:
        """Whether there is no `refusal`, in a tick of the windows' clock; the quick way for nearly all requests."""
        tokens, cost, doubt, doubt_cost = asks
        account, window = self.account, self.window
        return (
            (account is None or account.admits(tokens, unix, cost, doubt, doubt_cost))
            and (window is None or window.admits(tokens, tick))
            and (self._concurrency is None or self.in_flight < self._concurrency)
        )

    def refusal(self, asks: Asks, now: Now) -> Refusal | None:
        """Why a request can't go on now; None if it can."""
        tokens = asks[0]
        return self._over_budget(asks, now) or self._too_fast(tokens, now) or self._too_many()

    def _over_budget(self, asks: Asks, now: Now) -> Refusal | None:
        account = self.account
        if account is None:
            return None
        tokens, cost, doubt, doubt_cost = asks
        if account.fits(tokens, now.unix, cost):
            if not tokens or account.is_sure(tokens, cost, doubt, doubt_cost):
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
        window = self.window
        if window is None:
            return None
        return self._too_much(window, "requests", 1, now.steady) or self._too_much(window, "tokens", tokens, now.steady)

    def _too_much(self, window: Window, what: What, amount: int, now: float) -> Refusal | None:
        if window.fits(what, amount, now):
            return None
        limit = getattr(window, what)
        why = (
            f"{self.whose} may take {limit} {what} a minute, and {window.remaining(what, now)} are left; "
            f"this request may take {amount}"
        )
        if amount > limit:
            return Refusal(why, math.inf, can_wait=False)
        return Refusal(why, window.seconds_until(what, amount, now), can_wait=True)

    def _too_many(self) -> Refusal | None:
        if self._concurrency is None or self.in_flight < self._concurrency:
            return None
        why = f"{self.whose} may have {self._concurrency} requests under way at once, and {self.in_flight} are"
        return Refusal(why, UNKNOWN_SECONDS, can_wait=True)

    def take(self, asks: Asks, tick: int) -> Hold:
        """Let a request go on; `settle` must follow."""
        tokens, cost, doubt, doubt_cost = asks
        self.in_flight += 1
        account, window = self.account, self.window
        if account is not None:
            account.reserve(tokens, cost, doubt, doubt_cost)
        bucket = window.take(tokens, tick) if window is not None else None
        return Hold(self, window, bucket, account, asks)

    def taken(self, now: float) -> Taken:
        """What is taken of the last minute."""
        return self.window.taken(now) if self.window is not None else Taken([], [])

    def put_back(self, taken: Taken, passed: float, now: float) -> None:
        """Take what was taken of this quota `passed` seconds ago, in another life of the gateway."""
        if self.window is not None:
            self.window.put_back(taken, passed, now)

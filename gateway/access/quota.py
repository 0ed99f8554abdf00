"""What one key or one endpoint may take: requests and tokens a minute, requests at once, a budget. Pure."""

import math
from typing import NamedTuple

from gateway.access.budget import Account
from gateway.access.window import Bucket, Window
from gateway.types import Estimate, Limits

NO_LIMITS = Limits()
UNKNOWN_SECONDS = 1.0
"""Until a request under way ends: nobody knows."""


class Now(NamedTuple):
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


class Hold(NamedTuple):
    """What a request under way has taken of one quota."""

    reserved: int
    window: Window | None
    bucket: Bucket | None
    account: Account | None


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
        if self.tokens is not None and self.tokens.limit < tokens:
            tokens = self.tokens.limit
        if self.account is not None and self.account.budget.tokens < tokens:
            tokens = self.account.budget.tokens
        return max(estimate.least, tokens)

    def refusal(self, tokens: int, now: Now) -> Refusal | None:
        """Why a request with so many tokens can't go on now; None if it can."""
        return self._over_budget(tokens, now) or self._too_fast(tokens, now) or self._too_many()

    def _over_budget(self, tokens: int, now: Now) -> Refusal | None:
        account = self.account
        if account is None or account.fits(tokens, now.unix):
            return None
        budget, spent = account.budget, account.spent(now.unix).tokens
        why = (
            f"{self.whose} has a budget of {budget.tokens} tokens ({budget.period}), of which {spent} are spent and "
            f"{account.reserved} reserved by requests under way; this one may take {tokens}"
        )
        if not account.is_spent(tokens, now.unix):
            return Refusal(why, UNKNOWN_SECONDS, can_wait=True, is_budget=True)
        ends = account.resets_at(now.unix)
        seconds = math.inf if ends is None or tokens > budget.tokens else ends - now.unix
        return Refusal(why, seconds, can_wait=False, is_budget=True)

    def _too_fast(self, tokens: int, now: Now) -> Refusal | None:
        if self.requests is not None and not self.requests.fits(1, now.steady):
            return self._too_much("requests", self.requests, 1, now.steady)
        if self.tokens is not None and not self.tokens.fits(tokens, now.steady):
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

    def take(self, tokens: int, now: Now) -> Hold:
        """Let a request go on; `settle` must follow."""
        self.in_flight += 1
        if self.requests is not None:
            self.requests.take(1, now.steady)
        if self.account is not None:
            self.account.reserve(tokens)
        window = self.tokens
        bucket = window.take(tokens, now.steady) if window is not None else None
        return Hold(tokens, window, bucket, self.account)

    def settle(self, hold: Hold, tokens: int, now: Now) -> None:
        """The request is over, and took so many tokens in truth."""
        self.in_flight -= 1
        if hold.window is not None and hold.bucket is not None:
            hold.window.settle(hold.bucket, hold.reserved, tokens, now.steady)
        if hold.account is not None:
            hold.account.settle(hold.reserved, tokens, now.unix)


def _window(old: Window | None, limit: int | None) -> Window | None:
    if limit is None:
        return None
    if old is None:
        return Window(limit)
    old.limit = limit
    return old

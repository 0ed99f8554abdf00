"""Where requests with limits are let in, wait or are refused. One process, one event loop: every count is exact.

A request that may wait stands in line behind others for the same key and endpoint. Whoever is let in next is decided by
who came first; only those whose key or endpoint holds one back are passed over, so nobody is overtaken by its like.
"""

import asyncio
import functools
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from gateway.access.budget import Account, Spent
from gateway.access.quota import Asks, Hold, Now, Quota, Refusal
from gateway.access.window import TICKS_A_SECOND, State, tick_of
from gateway.errors import BudgetSpent, LimitReached, TooManyRequests, Unauthorized
from gateway.types import Budget, Estimate, Limits

MOST_WAITING = 1000
"""Requests that may wait for limits at once, all keys together; one more is refused."""
NEVER_SECONDS = 86_400.0
"""What `Retry-After` says where trying again helps only after somebody has changed the key."""

SHORTEST_SECONDS = 0.001
"""Between two looks; a timer may come a moment early."""
BEHIND_OTHERS = Refusal("Other requests wait for the same limits", 1.0, can_wait=True)

REQUEST_LINES, TOKEN_LINES = (
    b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n" % (what, what, what)
    for what in (b"requests", b"tokens")
)
BOTH_LINES = REQUEST_LINES + TOKEN_LINES

Headers = list[tuple[bytes, bytes]]
Quotas = tuple[Quota, ...]


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """A request that was let in; `settle` must follow, once."""

    gate: "Gate"
    quotas: Quotas
    holds: list[Hold]

    def lines(self) -> bytes:
        """`x-ratelimit-*` as they stand now, as lines of an answer's head."""
        return told_in_lines(self.quotas, self.gate.steady())

    def settle(self, tokens: int, cost: int = 0) -> None:
        """The request is over, and took so many tokens and billionths of a unit."""
        gate = self.gate
        tick, unix = int(gate.steady() * TICKS_A_SECOND), gate.unix()
        for hold in self.holds:
            hold.settle(tokens, tick, unix, cost)
            if hold.account is not None:
                gate.spent_more(hold.account)
        if gate.waiting:  # others may go on
            gate.let_in()


class Waiter:
    """A request in line."""

    __slots__ = ("asks", "granted", "number", "quotas")

    def __init__(self, number: int, quotas: Quotas, asks: Asks) -> None:
        self.number = number
        self.quotas = quotas
        self.asks = asks
        self.granted: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()


class Gate:
    """All quotas of keys and endpoints."""

    def __init__(self, steady: Callable[[], float] = time.monotonic, unix: Callable[[], float] = time.time) -> None:
        self.steady = steady
        self.unix = unix
        self._keys: dict[str, Quota] = {}
        self._endpoints: dict[str, Quota] = {}
        self._lines: dict[Quotas, deque[Waiter]] = {}
        self._numbers = itertools.count()
        self.waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self.spent_more: Callable[[Account], None] = lambda _: None
        """Called with an account of which something was spent."""

    def now(self) -> Now:
        """The time on both clocks."""
        return Now(self.steady(), self.unix())

    # what the limits are

    def set_key(
        self, key_id: str, name: str, limits: Limits | None, budget: Budget | None, spent: Spent | None = None
    ) -> None:
        """Take over a key's limits and budget; `spent` is what the database knows of it."""
        if limits is None and budget is None:
            self.forget_key(key_id)
        else:
            quota = self._keys.setdefault(key_id, Quota("", None))
            quota.whose = f"The key '{name}'"
            quota.limit(limits)
            if budget is None:
                quota.account = None
            elif quota.account is None:
                quota.account = Account(key_id, budget, self.unix(), spent)
            else:
                quota.account.change(budget, self.unix())
        self.let_in()

    def forget_key(self, key_id: str) -> None:
        """The key is gone, or nothing limits it any more: who waits for it goes on."""
        quota = self._keys.pop(key_id, None)
        if quota is not None:
            quota.limit(None)
            quota.account = None
        self.let_in()

    def drop_key(self, key_id: str) -> None:
        """The key is revoked: who waits for it is refused."""
        quota = self._keys.get(key_id)
        if quota is not None:
            for quotas, line in self._lines.items():
                for waiter in line if quota in quotas else ():
                    if not waiter.granted.done():
                        waiter.granted.set_exception(Unauthorized("This API key was revoked while its request waited"))
        self.forget_key(key_id)

    def set_endpoints(self, limits: Mapping[str, Limits | None]) -> None:
        """Take over every endpoint's limits."""
        for name, quota in self._endpoints.items():
            quota.limit(limits.get(name))
        self._endpoints = {
            name: self._endpoints.get(name) or Quota(f"The endpoint '{name}'", given)
            for name, given in limits.items()
            if given is not None
        }
        self.let_in()

    @property
    def by_name(self) -> tuple[dict[str, Quota], dict[str, Quota]]:
        """The quotas of keys by their ids, and of endpoints by their names."""
        return self._keys, self._endpoints

    def account(self, key_id: str) -> Account | None:
        """The account of a key that has a budget."""
        quota = self._keys.get(key_id)
        return quota.account if quota is not None else None

    def reset(self, account: Account) -> None:
        """Let a budget begin anew."""
        account.reset(self.unix())
        self.spent_more(account)
        self.let_in()

    # requests

    def quotas(self, key_id: str, endpoint: str) -> Quotas | None:
        """What limits a request of this key for this endpoint; None: nothing does."""
        key, other = self._keys.get(key_id), self._endpoints.get(endpoint)
        if key is None:
            return (other,) if other is not None else None
        return (key, other) if other is not None else (key,)

    def try_enter(self, quotas: Quotas, estimate: Estimate) -> Ticket | None:
        """Let a request in if it can go on at once, as nearly all can; None where it can't, which is for `enter`."""
        if self.waiting and self._is_behind(quotas):
            return None
        asks = _asks(quotas, estimate)
        tick, unix = int(self.steady() * TICKS_A_SECOND), self.unix()
        for quota in quotas:
            if not quota.admits(asks, tick, unix):
                return None
        return self._take(quotas, asks, tick)

    def _take(self, quotas: Quotas, asks: Asks, tick: int) -> Ticket:
        return Ticket(self, quotas, [quota.take(asks, tick) for quota in quotas])

    async def enter(self, quotas: Quotas, estimate: Estimate, patience: float) -> Ticket:
        """Let a request in, after waiting at most so many seconds. Raises LimitReached, BudgetSpent."""
        asks, now = _asks(quotas, estimate), self.now()
        _, refused = self._held_back(quotas, asks, now)
        if refused is None:
            if not self._is_behind(quotas):
                return self._take(quotas, asks, tick_of(now.steady))
            refused = BEHIND_OTHERS
        if not refused.can_wait or patience <= 0 or self.waiting >= MOST_WAITING:
            raise self._error(refused, quotas)
        return await self._wait(Waiter(next(self._numbers), quotas, asks), patience)

    def _is_behind(self, quotas: Quotas) -> bool:
        """Whether others wait for one of these already."""
        return any(quota.waiting for quota in quotas)

    def _held_back(self, quotas: Quotas, asks: Asks, now: Now) -> tuple[Quota, Refusal | None]:
        """The first quota that refuses a request, and why; None in its place if none does."""
        for quota in quotas:
            refused = quota.refusal(asks, now)
            if refused is not None:
                return quota, refused
        return quotas[0], None

    def _error(self, refused: Refusal, quotas: Quotas) -> TooManyRequests:
        kind = BudgetSpent if refused.is_budget else LimitReached
        never = math.isinf(refused.seconds)
        hint = "ask for less, or have the limit raised" if never else "try again after the seconds in Retry-After"
        if not never and refused.can_wait:
            hint += ", or send x-hostler-timeout to wait here"
        error = kind(f"{refused.why}: {hint}", retry_after=NEVER_SECONDS if never else math.ceil(refused.seconds))
        error.more_headers = told(quotas, self.steady())
        if never or not refused.can_wait:
            error.more_headers.append((b"x-should-retry", b"false"))
        return error

    # waiting

    async def _wait(self, waiter: Waiter, patience: float) -> Ticket:
        self._line_up(waiter)
        try:
            async with asyncio.timeout(patience):
                return await waiter.granted
        except TimeoutError:
            self._give_back(waiter)
            _, refused = self._held_back(waiter.quotas, waiter.asks, self.now())
            raise self._error(refused or BEHIND_OTHERS, waiter.quotas) from None
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise
        finally:
            self._leave(waiter)

    def _line_up(self, waiter: Waiter) -> None:
        self._lines.setdefault(waiter.quotas, deque()).append(waiter)
        self.waiting += 1
        for quota in waiter.quotas:
            quota.waiting += 1
        self.let_in()

    def _leave(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.quotas)
        if line is None or waiter not in line:
            return
        line.remove(waiter)
        self._gone(waiter)
        self.let_in()

    def _gone(self, waiter: Waiter) -> None:
        self.waiting -= 1
        for quota in waiter.quotas:
            quota.waiting -= 1
        if not self._lines[waiter.quotas]:
            del self._lines[waiter.quotas]

    def _give_back(self, waiter: Waiter) -> None:
        """It was let in in the very moment it gave up."""
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().settle(0)

    def let_in(self) -> None:
        """Let in whoever can go on now, in the order they came, and look again when time alone will have helped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.waiting:
            return
        now = self.now()
        soonest = math.inf
        blocked: set[Quota] = set()
        heads = [(line[0].number, quotas) for quotas, line in self._lines.items()]
        heapq.heapify(heads)
        while heads:
            _, quotas = heapq.heappop(heads)
            line = self._lines[quotas]
            waiter = line[0]
            if not blocked.isdisjoint(quotas):
                continue
            if not waiter.granted.done():  # else it has given up and is about to leave
                quota, refused = self._held_back(quotas, waiter.asks, now)
                if refused is None:
                    waiter.granted.set_result(self._take(quotas, waiter.asks, tick_of(now.steady)))
                elif refused.can_wait:
                    blocked.add(quota)
                    soonest = min(soonest, refused.seconds)
                    continue
                else:
                    waiter.granted.set_exception(self._error(refused, quotas))
            line.popleft()
            if line:
                heapq.heappush(heads, (line[0].number, quotas))
            self._gone(waiter)
        if soonest < math.inf:
            pause = max(soonest, SHORTEST_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(pause, self.let_in)


def _asks(quotas: Quotas, estimate: Estimate) -> Asks:
    tokens = estimate.likely
    if tokens != estimate.least:
        tokens = min([quota.amount(estimate) for quota in quotas])  # none of them is less than the least
    doubt = max(0, estimate.most - tokens)
    if estimate.price is None:
        return tokens, 0, doubt, 0
    cost = max([quota.cost(estimate) for quota in quotas])
    return tokens, cost, doubt, cost * doubt // tokens if tokens else 0


def states(quotas: Quotas, now: float) -> tuple[State | None, State | None]:
    """Of requests and of tokens: of several limits the one with the least left."""
    found = [quota.window.states(now) for quota in quotas if quota.window is not None]
    requests = [state for state, _ in found if state is not None]
    tokens = [state for _, state in found if state is not None]
    return min(requests, default=None), min(tokens, default=None)


def told_in_lines(quotas: Quotas, now: float) -> bytes:
    """`x-ratelimit-*` in OpenAI's words, as lines of a head."""
    window = quotas[0].window
    requests, tokens = window.states(now) if window is not None and len(quotas) == 1 else states(quotas, now)
    if requests is None:
        return TOKEN_LINES % _told(tokens) if tokens is not None else b""
    if tokens is None:
        return REQUEST_LINES % _told(requests)
    left, limit, seconds = requests
    if tokens[2] != seconds:
        return BOTH_LINES % (*_told(requests), *_told(tokens))
    reset = duration(math.ceil(seconds * 1000))  # as it mostly is: both were last taken of together
    return BOTH_LINES % (limit, left, reset, tokens[1], tokens[0], reset)


def _told(state: State) -> tuple[int, int, bytes]:
    left, limit, seconds = state
    return limit, left, duration(math.ceil(seconds * 1000))


def told(quotas: Quotas, now: float) -> Headers:
    """The same as names and values, for errors."""
    parts = (line.partition(b": ") for line in told_in_lines(quotas, now).splitlines())
    return [(name, value) for name, _, value in parts]


@functools.lru_cache(maxsize=1024)
def duration(milliseconds: int) -> bytes:
    """A time as OpenAI writes it: `0s`, `850ms`, `12.5s`, `1m0s`."""
    if 0 < milliseconds < 1000:  # noqa: PLR2004 - in a second
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    return ((f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s").encode()

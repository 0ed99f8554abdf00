"""Limits at work: who is let in, who waits and in which order, and who is refused with what headers."""

import asyncio
import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.gate import Gate, Ticket, duration
from gateway.access.window import tick_of
from gateway.errors import BudgetSpent, LimitReached
from gateway.prices import NANO_A_TOKEN, Price, units
from gateway.types import Budget, Estimate, Limits, Period

LONG = 30.0
A_BILLIONTH = Price(output=1 / NANO_A_TOKEN)
"""A price of one billionth a token."""


def estimate(tokens: int) -> Estimate:
    return Estimate(tokens, tokens, 0, A_BILLIONTH)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(clock, clock)


async def enter(gate: Gate, tokens: int = 10, patience: float = 0.0, key: str = "k", endpoint: str = "e") -> Ticket:
    quotas = gate.quotas(key, endpoint)
    assert quotas is not None
    ticket = None if patience else gate.try_enter(quotas, estimate(tokens))
    return await gate.enter(quotas, estimate(tokens), patience) if ticket is None else ticket


async def lined_up(gate: Gate, *waiting: "asyncio.Task[Ticket]") -> None:
    """Give the tasks their turn: now all stand in line."""
    await asyncio.sleep(0)
    assert gate.waiting == len(waiting)


def headers(ticket: Ticket) -> dict[str, str]:
    lines = (line.split(": ") for line in ticket.lines().decode().splitlines())
    return {name.removeprefix("x-ratelimit-"): value for name, value in lines}


async def test_a_key_without_limits_for_an_endpoint_without_limits_has_no_quotas(gate: Gate) -> None:
    gate.set_key("k", "app", None, None)
    gate.set_endpoints({"e": None})
    assert gate.quotas("k", "e") is None
    gate.set_endpoints({"e": Limits(concurrency=1)})
    assert len(gate.quotas("k", "e") or ()) == len(gate.quotas("admin", "e") or ()) == 1
    gate.set_key("k", "app", Limits(concurrency=1), None)
    assert len(gate.quotas("k", "e") or ()) == 2


async def test_the_headers_are_those_of_the_tighter_limit(gate: Gate, clock: Clock) -> None:
    gate.set_key("k", "app", Limits(requests_per_minute=5, tokens_per_minute=1_000), None)
    gate.set_endpoints({"e": Limits(requests_per_minute=3)})
    first = await enter(gate, 100)
    assert headers(first) == {
        "limit-requests": "3",
        "remaining-requests": "2",
        "reset-requests": "1m0.01s",
        "limit-tokens": "1000",
        "remaining-tokens": "900",
        "reset-tokens": "1m0.01s",
    }
    clock.now += 59.5
    first.settle(40)
    assert headers(first)["remaining-tokens"] == "960"
    assert headers(first)["reset-tokens"] == "510ms"


async def test_a_refusal_says_when_to_try_again_and_what_is_left(gate: Gate, clock: Clock) -> None:
    gate.set_key("k", "app", Limits(requests_per_minute=1), None)
    await enter(gate)
    clock.now += 10.5
    with pytest.raises(LimitReached, match=r"The key 'app' may take 1 requests a minute.*x-hostler-timeout") as caught:
        await enter(gate)
    told = dict(caught.value.headers())
    assert (told[b"retry-after"], told[b"x-ratelimit-remaining-requests"]) == (b"50", b"0")
    assert b"x-should-retry" not in told


async def test_a_spent_budget_and_a_request_too_large_are_not_to_be_sent_again(gate: Gate) -> None:
    gate.set_key("k", "app", Limits(tokens_per_minute=50), Budget(tokens=100, period=Period.TOTAL))
    with pytest.raises(LimitReached, match="ask for less") as large:
        await enter(gate, 51, LONG)
    (await enter(gate, 40)).settle(95)
    with pytest.raises(BudgetSpent, match="of which 95 are spent") as spent:
        await enter(gate, 10, LONG)
    assert [dict(one.value.headers())[b"x-should-retry"] for one in (large, spent)] == [b"false", b"false"]


async def test_who_may_wait_is_let_in_when_a_request_ends_in_the_order_they_came(gate: Gate) -> None:
    gate.set_key("k", "app", Limits(concurrency=1), None)
    first = await enter(gate)
    waiting = [asyncio.create_task(enter(gate, patience=LONG)) for _ in range(3)]
    await lined_up(gate, *waiting)
    with pytest.raises(LimitReached):
        await enter(gate)
    for number in range(3):
        assert [task.done() for task in waiting] == [True] * number + [False] * (3 - number)
        first.settle(0)
        first = await waiting[number]
    first.settle(0)
    assert gate.waiting == 0
    assert gate._lines == {}


async def test_who_may_wait_is_let_in_when_the_minute_has_passed() -> None:
    gate = Gate()
    gate.set_key("k", "app", Limits(requests_per_minute=1), None)
    loop = asyncio.get_running_loop()
    quotas = gate.quotas("k", "e")
    assert quotas is not None
    assert quotas[0].window is not None
    quotas[0].window.take(0, tick_of(loop.time() - 59.9))
    await enter(gate, patience=LONG)


async def test_time_is_up_for_who_waited_in_vain_and_who_left_takes_nothing(gate: Gate) -> None:
    gate.set_key("k", "app", Limits(concurrency=1), None)
    ticket = await enter(gate)
    with pytest.raises(LimitReached, match="under way at once"):
        await enter(gate, patience=0.01)
    leaving = asyncio.create_task(enter(gate, patience=LONG))
    await lined_up(gate, leaving)
    leaving.cancel()
    ticket.settle(0)  # lets in who is about to leave
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    (await enter(gate)).settle(0)
    assert gate.waiting == 0


async def test_one_who_waits_for_a_full_endpoint_does_not_hold_up_the_same_key_elsewhere(gate: Gate) -> None:
    gate.set_key("k", "app", Limits(concurrency=2), None)
    gate.set_endpoints({"full": Limits(concurrency=1), "free": None})
    first = await enter(gate, endpoint="full")
    blocked = asyncio.create_task(enter(gate, patience=LONG, endpoint="full"))
    await lined_up(gate, blocked)
    beside = await enter(gate, patience=LONG, endpoint="free")
    beside.settle(0)
    first.settle(0)
    (await blocked).settle(0)


@pytest.mark.parametrize(
    "relieve",
    [
        lambda gate: gate.set_key("k", "app", Limits(concurrency=2), None),
        lambda gate: gate.set_key("k", "app", None, None),
        lambda gate: gate.forget_key("k"),
    ],
    ids=["raised", "removed", "revoked"],
)
async def test_a_limit_that_is_raised_or_removed_lets_in_who_waits(gate: Gate, relieve: Callable[[Gate], None]) -> None:
    gate.set_key("k", "app", Limits(concurrency=1), None)
    await enter(gate)
    waiting = asyncio.create_task(enter(gate, patience=LONG))
    await lined_up(gate, waiting)
    relieve(gate)
    (await waiting).settle(0)


async def test_who_waits_for_a_budget_that_others_spend_is_told_so(gate: Gate) -> None:
    gate.set_key("k", "app", None, Budget(tokens=100))
    first = await enter(gate, 80)
    waiting = asyncio.create_task(enter(gate, 30, LONG))
    await lined_up(gate, waiting)
    first.settle(80)
    with pytest.raises(BudgetSpent, match="of which 80 are spent"):
        await waiting


async def test_what_may_turn_out_larger_than_is_left_goes_alone(gate: Gate) -> None:
    gate.set_key("k", "app", None, Budget(tokens=1_000, period=Period.TOTAL))
    quotas = gate.quotas("k", "")
    assert quotas is not None
    unsure, sure = Estimate(50, 50, most=600), Estimate(50, 50)
    first = await gate.enter(quotas, unsure, 0)
    with pytest.raises(BudgetSpent, match=r"550 tokens more than the 50 .*max_tokens") as caught:
        await gate.enter(quotas, unsure, 0)
    assert caught.value.retry_after == 1
    assert (b"x-should-retry", b"false") not in caught.value.more_headers
    beside = await gate.enter(quotas, sure, 0)
    waiting = asyncio.create_task(gate.enter(quotas, unsure, LONG))
    await asyncio.sleep(0)
    beside.settle(50)
    await asyncio.sleep(0)
    assert not waiting.done()
    first.settle(600)
    (await waiting).settle(600)  # of the 350 that were left
    account = gate.account("k")
    assert account is not None
    assert (account.reserved, account.doubt, account.spent(0).tokens) == (0, 0, 1_250)


@given(
    st.integers(1, 4),
    st.integers(20, 60),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(1, 20), st.booleans()), max_size=25),
)
async def test_no_limit_is_ever_exceeded_and_all_who_wait_end(
    concurrency: int, budget: int, asked: list[tuple[int, int, int, bool]]
) -> None:
    """Requests of two keys for two endpoints at once, of which some give up: counts are right at each step."""
    clock = Clock()
    gate = Gate(clock, clock)
    limits = Limits(concurrency=concurrency)
    for key in ("k0", "k1"):
        # what the one may take is bounded in tokens, what the other may cost in billionths: of a token that costs one
        bounds = {"tokens": budget} if key == "k0" else {"cost": units(budget)}
        gate.set_key(key, key, limits, msgspec.convert({**bounds, "period": "total"}, Budget))
    gate.set_endpoints({"e0": limits, "e1": None})
    running = dict.fromkeys(("k0", "k1", "e0", "e1"), 0)
    spent = {"k0": 0, "k1": 0}

    async def one(key: str, endpoint: str, tokens: int) -> None:
        try:
            ticket = await enter(gate, tokens, LONG, key, endpoint)
        except BudgetSpent:
            return
        for name in (key, endpoint):
            running[name] += 1
        assert max(running["k0"], running["k1"], running["e0"]) <= concurrency
        try:
            await asyncio.sleep(0)
        finally:
            for name in (key, endpoint):
                running[name] -= 1
            spent[key] += tokens
            ticket.settle(tokens, tokens)

    tasks = [asyncio.create_task(one(f"k{key}", f"e{endpoint}", tokens)) for key, endpoint, tokens, _ in asked]
    await asyncio.sleep(0)
    for task, (_, _, _, gives_up) in zip(tasks, asked, strict=True):
        if gives_up:
            task.cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LONG)
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    for key, used in spent.items():
        account = gate.account(key)
        assert account is not None
        assert (account.reserved, account.reserved_cost) == (0, 0)
        assert account.spent(clock())[2:] == (used, used)
        assert used <= budget
    assert gate.waiting == 0
    for key in ("k0", "k1"):
        assert [(quota.in_flight, quota.waiting) for quota in gate.quotas(key, "e0") or ()] == [(0, 0), (0, 0)]


@given(
    st.lists(
        st.builds(Limits, **{name: st.none() | st.integers(1, 30) for name in Limits.__struct_fields__}), max_size=2
    ),
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 9), st.sampled_from([0, 0.004, 20])), max_size=20),
)
async def test_the_quick_way_in_and_the_long_one_let_in_the_same_and_tell_the_same(
    limits: list[Limits], asked: list[tuple[int, int, float]]
) -> None:
    """Each request enters two gates, one by each way; some end, and time passes."""
    clock = Clock()
    quick, long = Gate(clock, clock), Gate(clock, clock)
    for gate in (quick, long):
        gate.set_key("k", "app", limits[0] if limits else None, Budget(tokens=200, cost=units(150)))
        gate.set_endpoints({"e": limits[1] if len(limits) > 1 else None})
    under_way: list[tuple[Ticket, Ticket]] = []
    for tokens, ends, pause in asked:
        clock.now += pause
        entered = quick.try_enter(quick.quotas("k", "e") or (), estimate(tokens))
        if entered is None:
            with pytest.raises((LimitReached, BudgetSpent)):
                await long.enter(long.quotas("k", "e") or (), estimate(tokens), 0)
        else:
            under_way.append((entered, await long.enter(long.quotas("k", "e") or (), estimate(tokens), 0)))
        for pair in under_way[:ends]:
            assert pair[0].lines() == pair[1].lines()
            for ticket in pair:
                ticket.settle(ends, tokens)
        del under_way[:ends]


async def test_nobody_overtakes_one_who_waits_for_the_same(gate: Gate) -> None:
    gate.set_key("k", "app", Limits(tokens_per_minute=50), None)
    gate.set_key("other", "other", Limits(tokens_per_minute=50), None)
    await enter(gate, 40)
    waiting = asyncio.create_task(enter(gate, 20, LONG))
    await lined_up(gate, waiting)
    with pytest.raises(LimitReached, match="Other requests wait"):
        await enter(gate, 5)
    (await enter(gate, 5, key="other")).settle(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    (await enter(gate, 5)).settle(0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.0172, "18ms"), (1, "1s"), (12.5, "12.5s"), (60, "1m0s"), (61.25, "1m1.25s")]
)
def test_seconds_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(math.ceil(seconds * 1000)) == text.encode()

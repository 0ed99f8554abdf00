"""The limits of one key or endpoint: which one refuses, with what words and how long."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.budget import Account
from gateway.access.quota import Asks, Now, Quota
from gateway.access.window import tick_of
from gateway.prices import Price, billionths, units
from gateway.types import Budget, Estimate, Limits, Period

START = Now(1_000.0, 1_000_000.0)
LATER = Now(1_061.0, 1_000_061.0)
TICK = tick_of(START.steady)


def asks(tokens: int, cost: int = 0) -> Asks:
    return tokens, cost, 0, 0


def refusal_of(quota: Quota, tokens: int = 10, now: Now = START) -> tuple[str, float, bool]:
    refused = quota.refusal(asks(tokens), now)
    assert refused is not None
    return refused.why, refused.seconds, refused.can_wait


def test_each_limit_refuses_with_what_it_is_and_until_when() -> None:
    requests = Quota("The key 'app'", Limits(requests_per_minute=1))
    tokens = Quota("The key 'app'", Limits(tokens_per_minute=15))
    at_once = Quota("The endpoint 'x'", Limits(concurrency=1))
    for quota in (requests, tokens, at_once):
        assert quota.refusal(asks(10), START) is None
        quota.take(asks(10), TICK)
    why, seconds, can_wait = refusal_of(requests, now=Now(1_010.0, 0.0))
    assert why == "The key 'app' may take 1 requests a minute, and 0 are left; this request may take 1"
    assert seconds == pytest.approx(50.01)
    assert can_wait
    assert refusal_of(tokens)[0].startswith("The key 'app' may take 15 tokens a minute, and 5 are left")
    assert refusal_of(at_once)[0] == "The endpoint 'x' may have 1 requests under way at once, and 1 are"
    assert [quota.refusal(asks(10), LATER) is None for quota in (requests, tokens, at_once)] == [True, True, False]


def test_what_a_request_did_not_take_is_free_for_the_next_one() -> None:
    quota = Quota("", Limits(tokens_per_minute=100, concurrency=1))
    hold = quota.take(asks(100), TICK)
    hold.settle(30, TICK, START.unix)
    assert quota.refusal(asks(70), START) is None
    assert refusal_of(quota, 71)[1] == pytest.approx(60.01)


def test_what_can_never_fit_is_not_to_be_waited_for() -> None:
    quota = Quota("", Limits(tokens_per_minute=100))
    assert refusal_of(quota, 101)[1:] == (math.inf, False)
    assert quota.amount(Estimate(20, 1_044)) == 100
    assert quota.amount(Estimate(120, 1_144)) == 120


def test_a_spent_budget_is_not_waited_for_and_a_reserved_one_is() -> None:
    account = Account("key", Budget(tokens=100, period=Period.TOTAL), START.unix)
    quota = Quota("The key 'app'", None, account)
    hold = quota.take(asks(60), TICK)
    why, _, can_wait = refusal_of(quota, 50)
    assert can_wait
    assert "budget of 100 tokens (total), of which 0 are spent and 60 reserved" in why
    hold.settle(60, TICK, START.unix)
    assert refusal_of(quota, 50)[1:] == (math.inf, False)


def test_a_budget_for_costs_reserves_by_the_price_and_says_what_is_left() -> None:
    account = Account("key", Budget(cost=0.5, period=Period.TOTAL), START.unix)
    quota = Quota("The key 'app'", None, account)
    price = Price(input=100, cached_input=10, output=1_000)
    guess = Estimate(300, 300, prompt=100, price=price)
    assert quota.cost(guess) == billionths(0.21)
    hold = quota.take(asks(300, quota.cost(guess)), TICK)
    assert quota.refusal(asks(300, quota.cost(guess)), START) is None
    hold.settle(250, TICK, START.unix, price.of_tokens(100, 100, 150))
    assert account.spent(START.unix).cost == billionths(0.151)
    quota.take(asks(300, quota.cost(guess)), TICK)
    refused = quota.refusal(asks(300, quota.cost(guess)), START)
    assert refused is not None
    assert refused.can_wait
    assert refused.is_budget
    assert refused.why == (
        "The key 'app' has a budget of 0.5 for what its requests cost (total), of which 0.151 are spent and 0.21 "
        "reserved by requests under way; this one may cost 0.21"
    )


def test_an_output_nobody_asked_for_is_cut_to_what_a_budget_for_costs_can_hold() -> None:
    quota = Quota("", None, Account("key", Budget(cost=0.5), START.unix))
    price = Price(input=100, output=1_000)
    assert quota.cost(Estimate(100, 1_124, 100, price)) == billionths(0.5)
    assert quota.cost(Estimate(6_000, 7_024, 6_000, price)) == billionths(0.6)
    assert quota.cost(Estimate(100, 1_124, 100, None)) == 0
    refused = quota.refusal(asks(6_000, billionths(0.6)), START)
    assert refused is not None
    assert refused.seconds == math.inf
    assert Quota("", None, Account("key", Budget(tokens=5), START.unix)).cost(Estimate(1, 2, 1, price)) == 0


def test_a_daily_budget_tells_the_seconds_until_midnight() -> None:
    quota = Quota("", None, Account("key", Budget(tokens=10, period=Period.DAY), START.unix))
    quota.take(asks(10), TICK).settle(10, TICK, START.unix)
    assert refusal_of(quota)[1] == 86_400 - START.unix % 86_400


def test_other_limits_keep_what_was_taken_and_none_forget_it() -> None:
    quota = Quota("", Limits(requests_per_minute=2, tokens_per_minute=50))
    hold = quota.take(asks(50), TICK)
    quota.limit(Limits(requests_per_minute=1, tokens_per_minute=60))
    assert refusal_of(quota)[0].startswith(" may take 1 requests")
    quota.limit(None)
    assert quota.refusal(asks(10**6), START) is None
    quota.limit(Limits(tokens_per_minute=50))
    hold.settle(10, TICK, START.unix)
    assert quota.refusal(asks(50), START) is None
    assert quota.in_flight == 0


def test_a_limit_that_comes_beside_another_begins_empty_and_who_is_under_way_has_no_part_in_it() -> None:
    quota = Quota("", Limits(requests_per_minute=5, tokens_per_minute=100))
    early = quota.take(asks(60), TICK)
    quota.limit(Limits(requests_per_minute=5))
    unlimited = quota.take(asks(10), TICK)
    quota.limit(Limits(requests_per_minute=4, tokens_per_minute=80))
    early.settle(20, TICK, START.unix)
    unlimited.settle(50, TICK, START.unix)
    assert states(quota) == [(2, 4), (80, 80)]
    quota.limit(Limits(tokens_per_minute=80))
    late = quota.take(asks(40), TICK)
    quota.limit(Limits(requests_per_minute=7, tokens_per_minute=50))
    late.settle(30, TICK, START.unix)
    assert states(quota) == [(7, 7), (20, 50)]
    assert quota.in_flight == 0


def states(quota: Quota) -> list[tuple[int, int]]:
    """What is left of how many requests, and of how many tokens."""
    assert quota.window is not None
    return [state[:2] for state in quota.window.states(START.steady) if state is not None]


@given(
    st.tuples(*(st.none() | st.integers(1, 12) for _ in range(5))),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9), st.integers(0, 12), st.integers(0, 4)), max_size=20),
)
def test_the_quick_way_admits_whoever_would_not_be_refused(
    bounds: tuple[int | None, ...], asked: list[tuple[int, int, int, int]]
) -> None:
    """Requests and tokens a minute, requests at once; a budget in tokens, in billionths, in both or none."""
    requests, tokens, at_once, most_tokens, most_cost = bounds
    quota = Quota("", Limits(requests_per_minute=requests, tokens_per_minute=tokens, concurrency=at_once))
    if most_tokens or most_cost:
        budget = Budget(tokens=most_tokens, cost=units(most_cost) if most_cost else None)
        quota.account = Account("key", budget, START.unix)
    under_way = []
    for takes, cost, doubt, ends in asked:
        one = (takes, cost, doubt, cost and 2 * doubt)
        admitted = quota.admits(one, TICK, START.unix)
        assert admitted == (quota.refusal(one, START) is None)
        if admitted:
            under_way.append(quota.take(one, TICK))
        for hold in under_way[:ends]:
            hold.settle(takes, TICK, START.unix, cost)
        del under_way[:ends]

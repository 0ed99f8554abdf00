"""Budgets: never overshot by more than was reserved too little, one for each period, whatever the clock does."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.budget import DAY_SECONDS, Account, Spent, end_of, number_of
from gateway.prices import units
from gateway.types import Budget, Period

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
DAILY = Budget(tokens=100, period=Period.DAY)


def account(budget: Budget = DAILY, now: float = NOON, spent: Spent | None = None) -> Account:
    return Account("key", budget, now, spent)


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 20)), max_size=60),
)
def test_it_is_never_overshot_where_requests_take_no_more_than_they_reserved(
    tokens: int, steps: list[tuple[bool, int, int]]
) -> None:
    kept = account(Budget(tokens=tokens, period=Period.TOTAL))
    under_way: list[int] = []
    spent = 0
    for begins, amount, which in steps:
        if begins or not under_way:
            fits = spent + sum(under_way) + amount <= tokens
            assert kept.fits(amount, NOON) == fits
            if fits:
                kept.reserve(amount)
                under_way.append(amount)
        else:
            reserved = under_way.pop(which % len(under_way))
            took = min(amount, reserved)
            kept.settle(reserved, took, NOON)
            spent += took
        assert kept.spent(NOON).tokens == spent <= tokens
        assert kept.reserved == sum(under_way)


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.booleans(), st.integers(1, 20), st.integers(0, 40), st.integers(0, 99)), max_size=60),
)
def test_where_requests_were_guessed_too_low_it_is_overshot_by_what_one_of_them_took_beyond(
    most: int, steps: list[tuple[bool, int, int, int]]
) -> None:
    kept = account(Budget(tokens=most, cost=units(3 * most), period=Period.TOTAL))
    under_way: list[tuple[int, int]] = []
    overshoot = 0
    for begins, asks, more, which in steps:
        if begins or not under_way:
            if kept.fits(asks, NOON, 3 * asks) and kept.is_sure(asks, 3 * asks, more, 3 * more):
                overshoot = max(overshoot, more)
                kept.reserve(asks, 3 * asks, more, 3 * more)
                under_way.append((asks, more))
        else:
            amount, doubt = under_way.pop(which % len(under_way))
            took = (amount + doubt) * (which % 4 > 0)
            kept.settle(amount, took, NOON, 3 * amount, 3 * took, doubt, 3 * doubt)
        assert kept.spent(NOON).tokens <= most + overshoot
        assert kept.spent(NOON).cost <= 3 * (most + overshoot)
    assert (kept.reserved, kept.doubt) == (sum(one for one, _ in under_way), sum(more for _, more in under_way))


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)), max_size=60),
)
def test_neither_tokens_nor_cost_are_overshot_where_requests_take_no_more_than_they_reserved(
    most_tokens: int, most_cost: int, steps: list[tuple[bool, int, int, int]]
) -> None:
    kept = account(Budget(tokens=most_tokens, cost=units(most_cost), period=Period.TOTAL))
    under_way: list[tuple[int, int]] = []
    tokens = cost = 0
    for begins, some, dear, which in steps:
        if begins or not under_way:
            tokens_fit = tokens + sum(one for one, _ in under_way) + some <= most_tokens
            cost_fits = dear == 0 or cost + sum(one for _, one in under_way) + dear <= most_cost
            assert kept.fits(some, NOON, dear) == (tokens_fit and cost_fits)
            if tokens_fit and cost_fits:
                kept.reserve(some, dear)
                under_way.append((some, dear))
        else:
            reserved, reserved_cost = under_way.pop(which % len(under_way))
            took, took_cost = min(some, reserved), min(dear, reserved_cost)
            kept.settle(reserved, took, NOON, reserved_cost, took_cost)
            tokens, cost = tokens + took, cost + took_cost
        spent = kept.spent(NOON)
        assert (spent.tokens, spent.cost) == (tokens, cost)
        assert tokens <= most_tokens
        assert cost <= most_cost
        assert (kept.reserved, kept.reserved_cost) == (
            sum(one for one, _ in under_way),
            sum(one for _, one in under_way),
        )


def test_a_budget_for_costs_lets_in_what_costs_nothing_and_counts_tokens_without_bounding_them() -> None:
    kept = account(Budget(cost=units(100), period=Period.DAY))
    kept.reserve(10**9, 90)
    kept.settle(10**9, 10**9, NOON, 90, 130)
    assert kept.spent(NOON)[2:] == (10**9, 130)
    assert not kept.fits(0, NOON, 1)
    assert kept.is_spent(0, NOON, 1)
    assert kept.fits(10**9, NOON, 0)
    assert kept.fits(0, NOON + DAY_SECONDS, 100)


@pytest.mark.parametrize("given", ["{}", '{"period": "day"}', '{"cost": 0}', '{"cost": 1e10}', '{"tokens": 0}'])
def test_a_budget_that_bounds_nothing_or_everything_is_refused(given: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(given, type=Budget)


def test_a_request_that_took_more_than_it_reserved_is_the_last_one() -> None:
    kept = account()
    kept.reserve(90)
    kept.settle(90, 130, NOON)
    assert kept.spent(NOON).tokens == 130
    assert not kept.fits(0, NOON)
    assert kept.is_spent(0, NOON)


def test_a_new_day_begins_at_midnight_in_utc() -> None:
    kept = account()
    kept.reserve(100)
    kept.settle(100, 100, NOON)
    midnight = kept.resets_at(NOON)
    assert midnight == datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert not kept.fits(1, midnight - 0.001)
    assert kept.fits(100, midnight)


def test_what_is_under_way_at_midnight_is_spent_of_the_new_day() -> None:
    kept = account()
    kept.reserve(60)
    tomorrow = NOON + DAY_SECONDS
    assert not kept.fits(41, tomorrow)
    kept.settle(60, 50, tomorrow)
    assert kept.spent(tomorrow).tokens == 50


@given(
    st.sampled_from(list(Period)),
    st.lists(st.floats(-90 * DAY_SECONDS, 90 * DAY_SECONDS), max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_a_clock_that_goes_back_gives_no_second_budget_even_over_restarts(
    period: Period, jumps: list[float], restarts: list[bool]
) -> None:
    budget = Budget(tokens=10, cost=units(10), period=period)
    kept, now = account(budget), NOON
    spent_in: dict[int, int] = {}
    for jump, restart in zip(jumps, restarts, strict=False):
        now += jump
        if restart:
            kept = account(budget, now, kept.spent(now))
        if kept.fits(2, now, 4):
            kept.reserve(2, 4)
            kept.settle(2, 2, now, 4, 4)
            number = kept.spent(now).number
            spent_in[number] = spent_in.get(number, 0) + 4
    assert all(spent <= 10 for spent in spent_in.values())
    # a budget begins anew only in a period later than all before
    assert list(spent_in) == sorted(spent_in)


def test_a_smaller_budget_holds_at_once_and_another_period_begins_anew() -> None:
    kept = account()
    kept.settle(0, 50, NOON)
    kept.change(Budget(tokens=40, period=Period.DAY), NOON)
    assert kept.is_spent(1, NOON)
    kept.change(Budget(tokens=40, period=Period.MONTH), NOON)
    assert kept.fits(40, NOON)


def test_a_reset_finds_back_from_a_clock_that_was_far_ahead() -> None:
    kept = account()
    kept.settle(0, 100, NOON + 400 * DAY_SECONDS)
    assert not kept.fits(1, NOON + DAY_SECONDS)
    kept.reset(NOON)
    assert kept.fits(100, NOON)
    assert kept.resets_at(NOON) == end_of(Period.DAY, number_of(Period.DAY, NOON))


def test_what_was_stored_of_another_period_is_not_what_this_one_has_spent() -> None:
    assert account(spent=Spent(Period.MONTH, 5, 99)).spent(NOON).tokens == 0


@pytest.mark.parametrize(
    ("day", "ends"),
    [
        (datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime(2028, 2, 29, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_month_ends_with_its_last_day(day: datetime, ends: datetime) -> None:
    assert end_of(Period.MONTH, number_of(Period.MONTH, day.timestamp())) == ends.timestamp()
    assert end_of(Period.TOTAL, number_of(Period.TOTAL, day.timestamp())) is None

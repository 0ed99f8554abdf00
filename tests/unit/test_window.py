"""What was taken within the last minute, against a model that keeps everything and adds it up anew each time."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.window import TICKS, TICKS_A_SECOND, Bucket, Window, tick_of

MINUTE = 60.0
QUARTER = TICKS_A_SECOND // 4
"""Times of the model are ticks, in quarters of a second: those are the same as floats."""


class Step(NamedTuple):
    pause: int
    """Quarters of a second since the step before."""
    amount: int
    settles: int | None
    """Which of the requests under way ends in place of a new one's beginning, and takes `amount`."""


PAUSES = st.integers(0, 8) | st.integers(0, 500)
STEPS = st.lists(st.builds(Step, PAUSES, st.integers(0, 12), st.none() | st.integers(0, 5)), max_size=40)


class SlowWindow:
    """Every charge there ever was, and no memory of sums."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.charges: list[list[int]] = []

    def taken(self, tick: int) -> int:
        return sum(amount for at, amount in self.charges if tick - at < TICKS)

    def settle(self, charge: list[int], amount: int, tick: int) -> None:
        if amount > charge[1]:
            self.charges.append([tick, amount - charge[1]])
        elif tick - charge[0] < TICKS:
            charge[1] = amount

    def ticks_until_free(self, tick: int) -> int:
        return max((at + TICKS - tick for at, _ in self.charges if tick - at < TICKS), default=0)

    def ticks_until(self, amount: int, tick: int) -> int:
        waits = sorted({0, *(at + TICKS - tick for at, _ in self.charges if tick - at < TICKS)})
        return next(wait for wait in waits if self.taken(tick + wait) + min(amount, self.limit) <= self.limit)


@given(st.integers(1, 20), st.integers(1, 20), STEPS)
def test_it_admits_refuses_and_tells_as_the_slow_model_does(most: int, limit: int, steps: list[Step]) -> None:
    window, requests, model, tick = Window(most, limit), SlowWindow(most), SlowWindow(limit), 0
    under_way: list[tuple[Bucket, list[int], int]] = []
    for step in steps:
        tick += step.pause * QUARTER
        now = tick / TICKS_A_SECOND
        if step.settles is not None and step.settles < len(under_way):
            bucket, charge, reserved = under_way.pop(step.settles)
            window.settle(bucket, reserved, step.amount, tick)
            model.settle(charge, step.amount, tick)
        else:
            fits = [model.taken(tick) + step.amount <= limit, requests.taken(tick) < most]
            assert [window.fits("tokens", step.amount, now), window.fits("requests", 1, now)] == fits
            assert window.admits(step.amount, tick) == all(fits)
            if step.amount <= limit:
                waits = window.seconds_until("tokens", step.amount, now) * TICKS_A_SECOND
                assert round(waits, 6) == model.ticks_until(step.amount, tick)
            waits = window.seconds_until("requests", 1, now) * TICKS_A_SECOND
            assert round(waits, 6) == requests.ticks_until(1, tick)
            if all(fits):
                model.charges.append([tick, step.amount])
                requests.charges.append([tick, 1])
                under_way.append((window.take(step.amount, tick), model.charges[-1], step.amount))
        for slow, told in zip((requests, model), window.states(now), strict=True):
            assert told is not None
            left, of, seconds = told
            assert (left, of) == (max(0, slow.limit - slow.taken(tick)), slow.limit)
            assert round(seconds * TICKS_A_SECOND, 6) == slow.ticks_until_free(tick)


@given(st.integers(1, 10), st.lists(st.floats(0, 30, allow_nan=False), max_size=60))
def test_no_minute_whatever_has_more_than_the_limit(limit: int, pauses: list[float]) -> None:
    window, now, admitted = Window(limit, None), 0.0, list[float]()
    for pause in pauses:
        now += pause
        if window.admits(10**6, tick_of(now)):
            window.take(10**6, tick_of(now))
            admitted.append(now)
    for first, after in zip(admitted, admitted[limit:], strict=False):
        assert after - first >= MINUTE


def test_more_than_was_estimated_counts_from_when_it_was_known() -> None:
    window = Window(None, 100)
    window.settle(window.take(10, 0), 10, 150, tick_of(50.0))
    assert window.remaining("tokens", 50.0) == 0
    assert window.remaining("tokens", 61.0) == 0
    assert window.remaining("tokens", 111.0) == 100


def test_more_than_the_limit_never_fits_and_waits_until_all_is_free() -> None:
    window = Window(None, 10)
    window.take(3, tick_of(5.0))
    assert not window.fits("tokens", 11, 5.0)
    assert window.seconds_until("tokens", 11, 15.0) == pytest.approx(50.01)


def test_a_window_of_many_requests_is_small() -> None:
    window = Window(10**9, None)
    for number in range(300_000):
        window.take(1, tick_of(number / 2_000))
    assert window.remaining("requests", 150.0) == 10**9 - 60 * 2_000
    assert len(window._buckets) <= TICKS

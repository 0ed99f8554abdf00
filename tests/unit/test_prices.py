"""Prices: exact in billionths, never negative, never more than the database holds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prices import BILLION, MOST, Price, billionths, units

TOKENS = st.integers(0, 2**40)
RATES = st.floats(0, BILLION)


def test_a_million_tokens_cost_what_the_price_says_and_cached_ones_theirs() -> None:
    price = Price(input=0.15, cached_input=0.075, output=0.6)
    assert price.of_tokens(1_000_000, 0, 0) == billionths(0.15)
    assert price.of_tokens(1_000_000, 400_000, 1_000_000) == billionths(0.6 * 0.15 + 0.4 * 0.075 + 0.6)
    assert price.of_tokens(1, 0, 0) == 150
    assert Price(input=2, output=1).of_tokens(1_000, 600, 1) == billionths(0.002001)


def test_an_hour_of_a_gpu_costs_what_the_price_says() -> None:
    assert Price(gpu_hour=2.5).of_gpu(3_600_000) == billionths(2.5)
    assert Price(gpu_hour=2.5).of_gpu(360) == 250_000
    assert Price(output=1).of_gpu(3_600_000) == 0


@given(RATES, st.none() | RATES, RATES, TOKENS, TOKENS, TOKENS)
def test_what_is_reserved_is_never_less_than_the_same_tokens_come_to(
    rate: float, known: float | None, output: float, prompt: int, cached: int, generated: int
) -> None:
    price = Price(input=rate, cached_input=known, output=output)
    cost = price.of_tokens(prompt, min(cached, prompt), generated)
    reserved = price.of_estimate(prompt, generated)
    assert 0 <= cost <= MOST
    assert cost <= reserved + 1 + reserved // 10**12  # floating-point numbers are rounded


@pytest.mark.parametrize(
    "given", [b'{"input": -1}', b'{"output": 1e10}', b'{"input": "1"}', b'{"inputs": 1}', b'{"input": null}']
)
def test_a_price_that_makes_no_sense_is_refused(given: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(given, type=Price)


def test_units_are_billionths_as_people_write_them() -> None:
    assert units(billionths(12.345678901)) == 12.345678901

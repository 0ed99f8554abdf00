"""Four workers and conversations of several turns, for real: cached prefixes are found and nobody is overloaded."""

from collections.abc import Iterator

import pytest

from tests.choices.served import Engines, compare, running_engines

OF_ONE_BIG_CACHE = 0.95
OVER_THE_MEAN = 1.25


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engines, Engines]]:
    with running_engines() as started:
        yield started


def test_conversations_find_their_cached_prefixes_and_no_worker_has_much_more_than_the_mean(
    engines: tuple[Engines, Engines],
) -> None:
    outcomes = compare(*engines)
    big, chosen, turns = (outcomes[name] for name in ("one big cache", "Hostler", "round robin"))
    assert chosen.hit_rate >= OF_ONE_BIG_CACHE * big.hit_rate, outcomes
    assert chosen.most_over_mean() <= OVER_THE_MEAN, outcomes
    assert turns.hit_rate < chosen.hit_rate, outcomes

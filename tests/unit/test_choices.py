"""The gateway's choice against its rivals on synthetic conversations, in simulated time."""

import pytest

from tests.choices import synthetic
from tests.choices.workload import Shape

CACHE_BLOCKS = 100_000
OF_ONE_BIG_CACHE = 0.95
OVER_THE_MEAN = 1.25


@pytest.mark.parametrize(
    "shape",
    [
        Shape(conversations=150),
        Shape(conversations=150, users=6),
        Shape(conversations=150, system_prompts=1),
        Shape(conversations=150, system_bytes=(10_000, 20_000), system_prompts=4),
    ],
    ids=["many users", "few users", "one system prompt", "long system prompts"],
)
def test_cached_prefixes_are_found_almost_as_in_one_big_cache_and_nobody_is_overloaded(shape: Shape) -> None:
    big = synthetic.run(shape, synthetic.round_robin, 1, CACHE_BLOCKS)
    ours = synthetic.run(shape, synthetic.hostler, 4, CACHE_BLOCKS)
    turns = synthetic.run(shape, synthetic.round_robin, 4, CACHE_BLOCKS)
    assert ours.hit_rate >= OF_ONE_BIG_CACHE * big.hit_rate
    assert ours.most_over_mean() <= OVER_THE_MEAN
    assert turns.hit_rate < ours.hit_rate

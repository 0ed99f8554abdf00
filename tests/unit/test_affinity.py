"""Trails of prompts and what workers have read of them."""

import itertools
import json
import os
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.peek import PREFIX_LIMIT
from gateway.scheduling.affinity import CLOSING, GRID, LIMIT, POINTS, Memory, Trail

FINEST = 64
CONTENTS = st.builds(
    lambda piece, times: piece * times, st.sampled_from(["a", 'say "]"', "é\n", "{}"]), st.integers(0, 4_000)
)


def read(memory: Memory, *prompts: bytes) -> Memory:
    for prompt in prompts:
        memory.remember(Trail(prompt).points())
    return memory


def depth(prompt: bytes, memory: Memory) -> int:
    trail = Trail(prompt)
    return trail.depth_in(memory, trail.blocks_in(memory))[0]


def goes_on(prompt: bytes, memory: Memory) -> bool:
    trail = Trail(prompt)
    return memory.is_end(trail.depth_in(memory, trail.blocks_in(memory))[1])


def turns(*contents: str) -> bytes:
    """The raw JSON of a conversation's messages."""
    roles = ("system", "user", "assistant")
    return json.dumps(
        [{"role": roles[min(n, 1 + (n + 1) % 2)], "content": content} for n, content in enumerate(contents)]
    ).encode()


def test_as_much_is_looked_at_as_the_peek_gives() -> None:
    assert LIMIT == PREFIX_LIMIT


def test_the_grid_is_fine_for_short_prompts_and_short_for_long_ones() -> None:
    assert GRID[-1] == LIMIT
    steps = [after - before for before, after in itertools.pairwise(GRID)]
    assert all(step <= max(512, before // 8) for before, step in zip(GRID, steps, strict=False))
    assert len(Trail(os.urandom(32 * 1024)).points()) < 50


@given(st.integers(0, 70_000), st.integers(0, 9_000), st.integers(0, 9_000), st.randoms(use_true_random=False))
def test_two_prompts_share_what_they_begin_with_and_no_more(
    common: int, one_more: int, other_more: int, random: Random
) -> None:
    beginning = random.randbytes(common)
    one, other = beginning + b"1" + bytes(one_more), beginning + b"2" + bytes(other_more)
    memory = read(Memory(), one) if Trail(one).points() else Memory()
    found = depth(other, memory)
    assert found <= common
    reach = min(common, min(LIMIT, len(one), len(other)) - CLOSING)
    shared_block = max((place for place in GRID if place <= reach), default=0)
    assert found >= min(shared_block, len(other) - CLOSING - FINEST)


@given(st.lists(CONTENTS, min_size=2, max_size=6), CONTENTS, CONTENTS)
def test_the_next_turn_of_a_conversation_is_known_up_to_where_the_last_one_ended(
    contents: list[str], answer: str, question: str
) -> None:
    before = turns(*contents)
    memory = read(Memory(), before)
    after = turns(*contents, answer, question)
    assert min(len(before), LIMIT) - CLOSING - FINEST < depth(after, memory) <= len(before)


def test_whoever_passes_where_just_one_prompt_ended_continues_it() -> None:
    system = "s" * 3_000
    memory = read(Memory(), turns(system, "u" * 200))
    assert goes_on(turns(system, "u" * 200, "a" * 300, "and now?"), memory)
    assert not goes_on(turns(system, "something else" * 20), memory)


def test_a_place_where_several_prompts_ended_is_just_a_common_beginning() -> None:
    system = "s" * 3_000
    memory = read(Memory(), turns(system, "hi"), turns(system, "ho"))
    assert not goes_on(turns(system, "hi", "a" * 300, "and now?"), memory)


def test_a_prompt_too_short_for_a_point_has_no_trail() -> None:
    assert Trail(b"").points() == Trail(b"x" * 60).points() == []
    assert depth(b"x" * 60, read(Memory(), b"x" * 600)) == 0


def test_a_prompt_beyond_the_limit_is_known_by_its_beginning() -> None:
    beginning = os.urandom(LIMIT)
    memory = read(Memory(), beginning + b"one")
    assert Trail(beginning).is_cut
    assert depth(beginning + b"other", memory) > LIMIT - CLOSING - FINEST


def test_memory_is_bounded_and_keeps_what_was_read_last() -> None:
    memory = Memory()
    last = b""
    for _ in range(1_000):
        last = os.urandom(16 * 1024)
        read(memory, last)
    longest = len(Trail(bytes(LIMIT)).points())
    assert len(memory) <= 2 * (POINTS + longest)
    assert depth(last, memory) > 16 * 1024 - CLOSING - FINEST


def test_what_is_read_again_and_again_is_not_forgotten() -> None:
    memory = Memory()
    shared = os.urandom(8 * 1024)
    for _ in range(1_000):
        assert depth(read_with(memory, shared), memory) >= len(shared)


def read_with(memory: Memory, shared: bytes) -> bytes:
    prompt = shared + os.urandom(2_000)
    read(memory, prompt)
    return prompt

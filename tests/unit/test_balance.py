"""Whom a prompt is given to: who has read most of it, within the bounds on the load."""

import math
import os

from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.affinity import Memory, Trail
from gateway.scheduling.balance import FEW_GIVEN, GIVEN_BOUND, IN_FLIGHT_BOUND, choose

SYSTEM = os.urandom(2_000)


class Worker:
    """A worker as the choice sees it."""

    def __init__(self, in_flight: int = 0, given: int = 0, *read: bytes) -> None:
        self.in_flight = in_flight
        self.given = given
        self.memory = Memory()
        for prompt in read:
            self.memory.remember(Trail(prompt).points())


def chosen(workers: list[Worker], prompt: bytes) -> int:
    return workers.index(choose(workers, workers, Trail(prompt)))


def test_who_has_read_most_of_the_prompt_gets_it() -> None:
    talk = SYSTEM + bytes(1_000)
    workers = [Worker(1), Worker(1, 0, SYSTEM), Worker(1, 0, talk), Worker(1, 0, talk[:2_500])]
    assert chosen(workers, talk + b"more" * 100) == 2


def test_where_nobody_has_read_any_of_it_the_fewest_in_flight_decide() -> None:
    assert chosen([Worker(2), Worker(1), Worker(3)], SYSTEM) == 1
    assert chosen([Worker(2), Worker(1), Worker(3)], b"") == 1


def test_where_all_are_idle_the_one_that_was_given_least_of_late_gets_it() -> None:
    assert chosen([Worker(0, 9), Worker(0, 7), Worker(0, 8)], SYSTEM) == 1


def test_where_little_is_asked_one_worker_does_it_all() -> None:
    assert chosen([Worker(0, FEW_GIVEN), Worker(0, 0)], SYSTEM) == 0


def test_beyond_the_bound_the_next_best_gets_it() -> None:
    talk = SYSTEM + bytes(1_000)
    # ceil(1.25 * (9 + 1) / 3) = 5, and one more for a conversation that goes on: the first may not take a seventh one
    workers = [Worker(6, 0, talk), Worker(0), Worker(3, 0, SYSTEM)]
    assert chosen(workers, talk + b"more" * 100) == 2
    workers = [Worker(5, 0, talk), Worker(1), Worker(3, 0, SYSTEM)]
    assert chosen(workers, talk + b"more" * 100) == 0


def test_a_conversation_stays_with_its_worker_however_much_that_was_given() -> None:
    talk = SYSTEM + bytes(1_000)
    assert chosen([Worker(0, 0, SYSTEM), Worker(0, 500, talk)], talk + b"more" * 100) == 1


def test_a_new_conversation_with_a_shared_beginning_goes_where_there_was_less_to_do() -> None:
    one, two = SYSTEM + b"1" * 500, SYSTEM + b"2" * 500
    workers = [Worker(0, 20, one, two), Worker(0, 10)]
    assert chosen(workers, SYSTEM + b"3" * 500) == 1
    workers = [Worker(0, 10, one, two), Worker(0, 10)]
    assert chosen(workers, SYSTEM + b"3" * 500) == 0


def test_a_conversation_longer_than_what_is_looked_at_stays_where_it_is() -> None:
    talk = os.urandom(70_000)
    workers = [Worker(), Worker(0, 500, talk, talk + bytes(1_000), talk + bytes(2_000))]
    assert chosen(workers, talk + bytes(3_000)) == 1


def test_where_only_workers_beyond_the_bound_are_able_one_of_them_gets_it() -> None:
    workers = [Worker(9), Worker(8), Worker(0)]
    assert choose(workers[:2], workers, Trail(SYSTEM)) is workers[1]


PROMPTS = [SYSTEM[:300], SYSTEM, SYSTEM + b"1" * 900, SYSTEM + b"2" * 900, b"3" * 900, b""]
FIGURES = st.tuples(st.integers(0, 30), st.integers(0, 200), st.sets(st.integers(0, 4)))


@given(st.lists(FIGURES, min_size=2, max_size=8), st.sampled_from(PROMPTS))
def test_nobody_gets_a_request_beyond_its_bound(figures: list[tuple[int, int, set[int]]], prompt: bytes) -> None:
    workers = [Worker(flying, given, *(PROMPTS[n] for n in read)) for flying, given, read in figures]
    total = sum(worker.in_flight for worker in workers)
    worker = choose(workers, workers, Trail(prompt))
    bound = math.ceil(IN_FLIGHT_BOUND * (total + 1) / len(workers))
    trail = Trail(prompt)
    goes_on = worker.memory.is_end(trail.depth_in(worker.memory, trail.blocks_in(worker.memory))[1])
    assert worker.in_flight + 1 <= bound + goes_on


@given(st.lists(st.integers(0, len(PROMPTS) - 1), min_size=40, max_size=120), st.integers(2, 5))
def test_of_many_new_prompts_nobody_gets_much_more_than_its_share(beginnings: list[int], number: int) -> None:
    workers = [Worker() for _ in range(number)]
    for count, beginning in enumerate(beginnings):
        new = PROMPTS[beginning] + b"%03d" % count * 100  # none begins with another one: that would be its next turn
        worker = choose(workers, workers, Trail(new))
        worker.memory.remember(Trail(new).points())
        worker.given += 1
    most = math.ceil(GIVEN_BOUND * len(beginnings) / number) + FEW_GIVEN
    assert max(worker.given for worker in workers) <= most

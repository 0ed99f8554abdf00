"""Who holds the GPUs: parts of a card add up to one, sleepers hold nothing, energy counts once and is never guessed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.usage.holders import AWAKE, LONGEST_SECONDS, Holders, Took, parts
from worker_manager.contract import Gpu, HostFacts, ObservedSet, ObservedWorker, Residency, WorkerSpec, WorkerState

TOTAL_MIB = 10_000


def card(number: int = 0, energy_mj: int | None = None) -> Gpu:
    facts = {"uuid": f"g{number}", "name": "card", "memory_total_mib": TOTAL_MIB, "memory_used_mib": 0}
    return Gpu(index=number, energy_mj=energy_mj, **facts)  # type: ignore[arg-type]  # names and kinds are the struct's


def worker(
    endpoint: str, *cards: str, promise: int | None = 1_000, state: WorkerState = WorkerState.READY
) -> ObservedWorker:
    spec = WorkerSpec(
        id=f"{endpoint}-1", endpoint=endpoint, model="local/m", served_names=(), gpus=cards, gpu_memory_mib=promise
    )
    return ObservedWorker(
        spec=spec, spec_hash="", state=state, residency=Residency.HOT, since=0.0, socket=f"{endpoint}/engine.sock"
    )


def seen(*workers: ObservedWorker, gpus: tuple[Gpu, ...] = (card(),)) -> ObservedSet:
    host = HostFacts(launcher="process", device="cuda", gpus=gpus)
    return ObservedSet(manager="m", version=1, generation=1, workers=workers, host=host)


def test_a_card_is_held_in_parts_of_what_was_promised_on_it() -> None:
    observed = seen(
        worker("small", "g0", promise=1_000),
        worker("large", "g0", "g1", promise=3_000),
        worker("whole", "g2", promise=None),
        gpus=(card(0), card(1), card(2)),
    )
    assert parts(observed) == {"g0": {"small": 0.25, "large": 0.75}, "g1": {"large": 1.0}, "g2": {"whole": 1.0}}


@pytest.mark.parametrize("state", list(WorkerState))
def test_who_sleeps_waits_or_has_failed_holds_nothing(state: WorkerState) -> None:
    held = parts(seen(worker("e", "g0", state=state)))
    assert bool(held) == (state in AWAKE)
    assert (WorkerState.ASLEEP in AWAKE, WorkerState.WAITING in AWAKE, WorkerState.FAILED in AWAKE) == (False,) * 3


def test_what_passed_between_two_looks_belongs_to_who_held_the_card_at_the_first() -> None:
    holders = Holders()
    assert holders.step(seen(worker("a", "g0"), gpus=(card(0, 5_000),)), 100.0) == {}
    both = seen(worker("a", "g0"), worker("b", "g0", promise=3_000), gpus=(card(0, 6_000),))
    assert holders.step(both, 110.0) == {"a": Took(10_000.0, 1_000.0)}
    asleep = seen(worker("a", "g0", state=WorkerState.ASLEEP), worker("b", "g0"), gpus=(card(0, 10_000),))
    assert holders.step(asleep, 112.0) == {"a": Took(500.0, 1_000.0), "b": Took(1_500.0, 3_000.0)}
    assert holders.step(seen(gpus=(card(0, 10_500),)), 113.0) == {"b": Took(1_000.0, 500.0)}
    assert holders.step(seen(gpus=(card(0, 99_000),)), 114.0) == {}


def test_a_card_that_does_not_tell_its_energy_gives_none_and_not_nothing() -> None:
    holders = Holders()
    observed = seen(worker("mute", "g0"), worker("told", "g1"), gpus=(card(0), card(1, 7)))
    holders.step(observed, 0.0)
    assert holders.step(observed, 1.0) == {"mute": Took(1_000.0, None), "told": Took(1_000.0, 0.0)}


def test_a_counter_that_began_anew_is_not_guessed_at_and_one_that_was_not_read_once_loses_nothing() -> None:
    holders = Holders()
    energies = [500, 800, None, 900, 100, 150]
    took = [
        holders.step(seen(worker("e", "g0"), gpus=(card(0, energy),)), float(at)) for at, energy in enumerate(energies)
    ]
    assert [each["e"].energy_mj for each in took[1:]] == [300, None, 100, None, 50]


def test_over_a_gap_only_those_count_who_held_the_card_before_and_after_it() -> None:
    holders = Holders()
    holders.step(seen(worker("stays", "g0"), worker("goes", "g0")), 0.0)
    long = LONGEST_SECONDS + 40
    assert holders.step(seen(worker("stays", "g0"), worker("comes", "g0")), long) == {"stays": Took(50_000.0)}


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(list(WorkerState)), st.integers(1, 9_999))),
            st.floats(0.1, 30),
            st.integers(0, 10**6),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_all_together_never_take_more_than_the_card_has(
    looks: list[tuple[list[tuple[str, WorkerState, int]], float, int]],
) -> None:
    holders, at, counter = Holders(), 0.0, 0
    gpu_ms = energy = 0.0
    for workers, seconds, used in looks:
        at, counter = at + seconds, counter + used
        known = [worker(endpoint, "g0", promise=promise, state=state) for endpoint, state, promise in workers]
        for took in holders.step(seen(*known, gpus=(card(0, counter),)), at).values():
            gpu_ms += took.gpu_ms
            energy += took.energy_mj or 0.0
    assert gpu_ms <= at * 1000 * (1 + 1e-9)
    assert energy <= counter * (1 + 1e-9)


def test_the_manager_sends_energy_and_an_older_one_none() -> None:
    text = msgspec.json.encode(card(0, 5))
    assert msgspec.json.decode(text, type=Gpu).energy_mj == 5
    older = msgspec.json.decode(text.replace(b',"energy_mj":5', b""), type=Gpu)
    assert older.energy_mj is None

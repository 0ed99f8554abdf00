"""What an engine is told to load and to unload, and when it is told again."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from worker_manager import adapter_steps as steps
from worker_manager.adapter_steps import Held, Load, Unload
from worker_manager.contract import Adapter, AdapterState

NOW = 1_000.0


def adapter(name: str, revision: str = "a1") -> Adapter:
    return Adapter(name=name, path=f"local/{name}", revision=revision, rank=8)


def wanted(*adapters: Adapter) -> dict[str, Adapter]:
    return {one.name: one for one in adapters}


def test_what_is_missing_is_loaded_and_what_nobody_wants_goes_first() -> None:
    held = {"old": Held(since=NOW, loaded="a1")}
    assert steps.next_step(wanted(adapter("x"), adapter("y")), held, NOW) == Unload("old")
    assert steps.next_step(wanted(adapter("x"), adapter("y")), {}, NOW) == Load(adapter("x"))
    assert steps.next_step(wanted(adapter("x")), {"x": steps.loaded(adapter("x"), NOW)}, NOW) is None


def test_another_revision_is_an_unload_and_a_load() -> None:
    held = {"x": steps.loaded(adapter("x", "a1"), NOW)}
    assert steps.next_step(wanted(adapter("x", "b2")), held, NOW) == Unload("x")
    assert steps.next_step(wanted(adapter("x", "b2")), {}, NOW) == Load(adapter("x", "b2"))


def test_a_failure_is_tried_again_ever_later_and_then_no_more() -> None:
    held: Held | None = None
    waits = []
    for _ in range(steps.TRIES):
        held = steps.failed(adapter("x"), held, "it is broken", NOW)
        waits.append(None if held.retry_at is None else held.retry_at - NOW)
    assert waits == [2.0, 8.0, 32.0, None]
    assert held is not None
    assert steps.next_step(wanted(adapter("x")), {"x": held}, NOW + 10_000) is None
    assert steps.next_step(wanted(adapter("x", "b2")), {"x": held}, NOW) == Load(adapter("x", "b2")), (
        "a new one is tried"
    )


def test_what_has_not_failed_goes_before_what_has() -> None:
    failed = steps.failed(adapter("a"), None, "it is broken", NOW)
    later = NOW + 5
    assert steps.next_step(wanted(adapter("a"), adapter("b")), {"a": failed}, later) == Load(adapter("b"))
    held = {"a": failed, "b": steps.loaded(adapter("b"), NOW)}
    assert steps.next_step(wanted(adapter("a"), adapter("b")), held, later) == Load(adapter("a"))
    assert steps.next_step(wanted(adapter("a"), adapter("b")), held, NOW) is None
    assert steps.next_try(wanted(adapter("a")), held) == NOW + 2
    assert steps.next_try(wanted(adapter("b")), held) is None


def test_the_gateway_hears_that_one_loads_serves_or_failed() -> None:
    one = adapter("x")
    assert steps.observed(one, None, 5.0).state is AdapterState.LOADING
    assert steps.observed(one, Held(since=NOW, loaded="b2"), 5.0).state is AdapterState.LOADING, "another revision"
    assert steps.observed(one, steps.loaded(one, NOW), 5.0).state is AdapterState.READY
    told = steps.observed(one, steps.failed(one, None, "it is broken", NOW), 5.0)
    assert (told.state, told.reason, told.since) == (AdapterState.FAILED, "it is broken", NOW)


NAMES = st.sampled_from(["x", "y", "z"])
REVISIONS = st.sampled_from(["a1", "b2"])
ADAPTERS = st.dictionaries(NAMES, REVISIONS).map(lambda some: wanted(*(adapter(*one) for one in some.items())))


@given(first=ADAPTERS, second=ADAPTERS, bad=st.frozensets(st.tuples(NAMES, REVISIONS)))
def test_from_any_state_it_comes_to_rest_with_all_that_can_be_loaded_and_nothing_else(
    first: dict[str, Adapter], second: dict[str, Adapter], bad: frozenset[tuple[str, str]]
) -> None:
    held: dict[str, Held] = {}
    engine: dict[str, str] = {}
    now = NOW
    for goal in (first, second):
        for _ in range(60):
            step = steps.next_step(goal, held, now)
            if isinstance(step, Unload):
                del held[step.name], engine[step.name]
            elif isinstance(step, Load):
                one = step.adapter
                assert one.name not in engine, "vLLM refuses a name that it has"
                if (one.name, one.revision) in bad:
                    held[one.name] = steps.failed(one, held.get(one.name), "it is broken", now)
                else:
                    engine[one.name] = one.revision
                    held[one.name] = steps.loaded(one, now)
            elif (later := steps.next_try(goal, held)) is not None:
                now = later
            else:
                break
        else:
            raise AssertionError("it does not come to rest")
        good = {name: one.revision for name, one in goal.items() if (name, one.revision) not in bad}
        assert engine == good
        assert msgspec.to_builtins(engine) == good

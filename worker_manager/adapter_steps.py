"""Which adapter an engine is told to load or to unload next, and what the gateway hears of each. Pure.

An engine has few ways to say what is wrong with an adapter (vLLM answers 500 to most of it), so each failure is tried
again some times, ever more rarely, and then no more until the adapter or the engine is another one.
"""

from collections.abc import Mapping

import msgspec

from worker_manager.contract import Adapter, AdapterState, ObservedAdapter

TRIES = 4
RETRY_SECONDS = 2.0
"""After the first failure; four times as long after each further one."""
OTHER = "other"
"""The revision of an adapter that was found loaded from other files than the wanted ones, or before a sleep."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one adapter in one life of an engine."""

    since: float
    loaded: str = ""
    """The revision that the engine serves; empty: none."""
    tried: str = ""
    """The revision that the failures below are of."""
    tries: int = 0
    retry_at: float | None = None
    """Unix time of the next try after a failure; None: no more."""
    reason: str = ""


class Load(msgspec.Struct, frozen=True):
    """Have the engine load this; it has nothing under that name."""

    adapter: Adapter


class Unload(msgspec.Struct, frozen=True):
    """Have the engine forget this name."""

    name: str


Step = Load | Unload


def next_step(wanted: Mapping[str, Adapter], held: Mapping[str, Held], now: float) -> Step | None:
    """What to do now; None: nothing, before `next_try`.

    Another revision is an unload and a load. vLLM could replace one in place, but then reads its files again at every
    step of every request (issue 33791, still so in 0.32).
    """
    for name, known in sorted(held.items()):
        adapter = wanted.get(name)
        if known.loaded and (adapter is None or adapter.revision != known.loaded):
            return Unload(name)
    due = [adapter for name, adapter in sorted(wanted.items()) if _is_due(adapter, held.get(name), now)]
    # what has not failed yet goes before what has
    return Load(min(due, key=lambda one: _failures(one, held.get(one.name)))) if due else None


def next_try(wanted: Mapping[str, Adapter], held: Mapping[str, Held]) -> float | None:
    """When something failed is tried again; Unix seconds."""
    times = (known.retry_at for name, known in held.items() if name in wanted and known.retry_at is not None)
    return min(times, default=None)


def loaded(adapter: Adapter, now: float) -> Held:
    """The engine has it."""
    return Held(since=now, loaded=adapter.revision)


def failed(adapter: Adapter, before: Held | None, reason: str, now: float) -> Held:
    """The engine does not take it, or could not be asked."""
    tries = _failures(adapter, before) + 1
    return Held(
        since=before.since if before is not None and tries > 1 else now,
        tried=adapter.revision,
        tries=tries,
        retry_at=now + RETRY_SECONDS * 4.0 ** (tries - 1) if tries < TRIES else None,
        reason=reason,
    )


def observed(adapter: Adapter, known: Held | None, since: float) -> ObservedAdapter:
    """An adapter as the gateway sees it; `since`: when its worker became ready."""
    state, reason = AdapterState.LOADING, ""
    if known is not None and known.loaded == adapter.revision:
        state = AdapterState.READY
    elif known is not None and known.tried == adapter.revision:
        state, reason = AdapterState.FAILED, known.reason
    return ObservedAdapter(
        name=adapter.name,
        revision=adapter.revision,
        state=state,
        since=known.since if known is not None else since,
        reason=reason,
    )


def _failures(adapter: Adapter, known: Held | None) -> int:
    return known.tries if known is not None and known.tried == adapter.revision else 0


def _is_due(adapter: Adapter, known: Held | None, now: float) -> bool:
    if known is None or adapter.revision not in (known.loaded, known.tried):
        return True
    return known.loaded != adapter.revision and known.retry_at is not None and now >= known.retry_at

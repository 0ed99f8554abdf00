"""What the manager refuses: its own sums, and what the gateway makes of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from gateway.audit import refusals as audited
from gateway.audit.store import AuditStore, Wanted
from gateway.database.connection import Database
from tests.support.waiting import wait_until_async
from worker_manager.contract import (
    Failure,
    FailureKind,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Refused,
    Residency,
    WorkerSpec,
    WorkerState,
)
from worker_manager.refusals import MESSAGE_MAX, TELL_SECONDS, Refusals

HOST = HostFacts(launcher="process", device="cpu")


async def test_each_kind_is_one_sum_with_its_last_message() -> None:
    refusals = Refusals(lambda: None, clock=lambda: 5.0)
    for message in ("a", "b" * 10_000):
        refusals.note("invalid", message)
    refusals.note("http", "c")
    assert refusals.sums() == (
        Refused(kind="http", count=1, message="c", at=5.0),
        Refused(kind="invalid", count=2, message="b" * MESSAGE_MAX, at=5.0),
    )


async def test_of_a_flood_the_log_tells_each_doubling_and_begins_again_after_a_minute() -> None:
    now = 0.0
    refusals = Refusals(lambda: None, clock=lambda: now)
    with structlog.testing.capture_logs() as lines:
        for _ in range(1000):
            refusals.note("malformed", "x")
        now = 61.0
        refusals.note("malformed", "y")
        refusals.note("malformed", "y")
    assert [line["count"] for line in lines] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1001, 1002]


async def test_a_flood_changes_the_observed_set_at_once_and_then_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker_manager.refusals.TELL_SECONDS", TELL_SECONDS / 100)
    told: list[int] = []
    refusals = Refusals(lambda: told.append(refusals.sums()[0].count))
    for _ in range(1000):
        refusals.note("invalid", "x")
    assert told == [1]
    await wait_until_async(lambda: len(told) == 2, "the rest is told", seconds=30, interval=0.01)
    assert told == [1, 1000]


# the gateway's part


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AuditStore]:
    database = await Database.open(tmp_path)
    yield AuditStore(database)
    await database.close()


async def recorded(store: AuditStore) -> list[tuple[str, Any]]:
    found = await store.page(Wanted(action="manager.refused"), 100)
    return [(record.target, msgspec.json.decode(record.after or "")["count"]) for record in reversed(found)]


def observed(manager: str = "m", **counts: int) -> ObservedSet:
    sums = tuple(Refused(kind=kind, count=count, message="told", at=1.0) for kind, count in counts.items())
    return ObservedSet(manager=manager, version=1, generation=0, host=HOST, refusals=sums)


async def test_refusals_are_recorded_in_sums_and_a_flood_of_sums_in_few(
    store: AuditStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audited, "GATHER_SECONDS", 0)
    monkeypatch.setattr(audited, "AT_ONCE", 4)
    now = 0.0
    refusals = audited.Refusals(store, clock=lambda: now)
    running = asyncio.create_task(refusals.run())

    async def reads(*wanted: tuple[str, int]) -> None:
        async def same() -> bool:
            return await recorded(store) == list(wanted)

        assert bool(await wait_until_async(same, f"recorded: {wanted}", seconds=30, interval=0.01))

    refusals.notice(observed(invalid=1))
    first = ("invalid", 1)
    await reads(first)
    for count in range(2, 500):
        refusals.notice(observed(invalid=count))
    refusals.notice(observed(invalid=499, http=2))
    await reads(first, ("http", 2), ("invalid", 498))
    refusals.notice(observed("another manager", http=1))
    await reads(first, ("http", 2), ("invalid", 498), ("http", 1))
    for count in range(2, 500):
        refusals.notice(observed("another manager", http=count))
    await reads(first, ("http", 2), ("invalid", 498), ("http", 1))
    now = audited.EACH_SECONDS
    refusals.notice(observed("another manager", http=500))
    await reads(first, ("http", 2), ("invalid", 498), ("http", 1), ("http", 499))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_worker_that_is_recorded_by_name_is_not_counted_as_well(store: AuditStore) -> None:
    refusals = audited.Refusals(store)
    running = asyncio.create_task(refusals.run())
    spec = WorkerSpec(id="w1", endpoint="tiny", model="local/tiny", served_names=("tiny",))
    failure = Failure(kind=FailureKind.REFUSED, message="it may not", hint="")
    worker = ObservedWorker(
        spec=spec,
        spec_hash="",
        state=WorkerState.FAILED,
        residency=Residency.GONE,
        since=0.0,
        socket="",
        failure=failure,
    )
    told = Refused(kind="policy", count=1, message="worker w1: it may not", at=1.0)
    shown = ObservedSet(manager="m", version=1, generation=0, host=HOST, workers=(worker,), refusals=(told,))
    refusals.notice(shown)

    async def actions() -> list[str]:
        return [record.action for record in await store.page(Wanted(), 9)]

    found: list[str] = await wait_until_async(actions, "one record", seconds=30, interval=0.01)
    assert found == ["worker.refused"]
    vanished = msgspec.structs.replace(shown, workers=(), refusals=(msgspec.structs.replace(told, count=2),))
    refusals.notice(vanished)

    async def both() -> bool:
        return await actions() == ["manager.refused", "worker.refused"]

    assert bool(await wait_until_async(both, "a second record", seconds=30, interval=0.01))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

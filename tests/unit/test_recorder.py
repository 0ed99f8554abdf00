"""Records of use on their way to a real database that now and then takes no writes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from gateway.database.connection import FILE_NAME, Database
from gateway.prices import MOST
from gateway.types import Used
from gateway.usage import recorder as module
from gateway.usage.recorder import Recorder, prune_daily
from gateway.usage.store import ROWS, UsageStore
from gateway.usage.types import FAILED, By, Sum, WantedDays, added_up

DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2
"""2024-10-04 12:00 UTC."""


def used(
    number: int = 0, at: float = NOON, status: int = 200, key: str = "k", endpoint: str = "e", cost: int = 40
) -> Used:
    return Used(at, f"r{number}", key, endpoint, "w", status, 0, 0, 0, 10, 3, 5, 0, 1, 20, 30, cost)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> UsageStore:
    return UsageStore(database)


async def written(store: UsageStore) -> int:
    return sum(
        [total.requests for total in (await store.sums(By.DAY, WantedDays("0001-01-01", "9999-12-31"))).values()]
    )


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            pass


async def refuse_writes(database: Database, how: str) -> None:
    """As a full disk does, or a file system that became read-only."""
    [(pages,)] = await database.rows("PRAGMA page_count")
    await database.rows({"full": f"PRAGMA max_page_count = {pages}", "read-only": "PRAGMA query_only = ON"}[how])


async def take_writes(database: Database) -> None:
    await database.rows("PRAGMA query_only = OFF")
    await database.rows("PRAGMA max_page_count = 1000000")


async def test_records_are_written_with_their_sums_when_the_recorder_stops(store: UsageStore) -> None:
    recorder = Recorder(store)
    recorder.start()
    for number in range(2500):
        recorder.record(used(number, at=NOON + number))
    await recorder.stop()
    assert (await store.sums(By.KEY, WantedDays("2024-10-04", "2024-10-04"))) == {
        "k": Sum(2500, 0, 0, 0, 25_000, 7500, 12_500, 2500, 2500, 50_000, 75_000, 100_000)
    }


async def test_a_flush_returns_when_everything_is_written(store: UsageStore) -> None:
    recorder = Recorder(store)
    recorder.start()
    for number in range(5):
        recorder.record(used(number))
        await asyncio.gather(recorder.flush(), recorder.flush())
        assert (await written(store), recorder.unwritten) == (number + 1, 0)
    await recorder.flush()
    await recorder.stop()


async def test_records_are_written_by_themselves(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.01)
    recorder = Recorder(store)
    recorder.start()
    for _ in range(2):
        recorder.record(used())
        await until(lambda: asyncio.sleep(0.001, recorder.unwritten == 0))
    assert await written(store) == 2
    await recorder.stop()


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_what_cannot_be_written_is_kept_and_written_once_later(
    store: UsageStore, database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    recorder = Recorder(store)
    recorder.start()
    await refuse_writes(database, how)
    for number in range(1500):
        recorder.record(used(number, endpoint=f"{number}-" + "e" * 50))
    await recorder.flush()
    kept = recorder.unwritten
    assert kept >= 500  # a full disk may have taken the first batch
    await take_writes(database)
    await recorder.flush()
    assert (await written(store), recorder.unwritten) == (1500, 0)
    await recorder.stop()


async def test_a_database_that_somebody_holds_loses_nothing(store: UsageStore, tmp_path: Path) -> None:
    recorder = Recorder(store)
    recorder.start()
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    recorder.record(used())
    flushed = asyncio.create_task(recorder.flush())
    await asyncio.sleep(0)
    recorder.record(used(1))
    holder.execute("ROLLBACK")
    holder.close()
    await flushed
    await recorder.stop()
    assert await written(store) == 2


async def test_a_full_queue_drops_and_counts(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 10)
    dropped: list[int] = []
    recorder = Recorder(store, on_drop=lambda: dropped.append(1))
    for number in range(15):
        recorder.record(used(number))
    assert (recorder.unwritten, len(dropped)) == (10, 5)
    recorder.start()
    await recorder.stop()
    assert await written(store) == 10


async def test_stopping_gives_up_on_a_database_that_takes_nothing(store: UsageStore, database: Database) -> None:
    recorder = Recorder(store)
    recorder.start()
    await refuse_writes(database, "read-only")
    recorder.record(used())
    await recorder.stop()
    assert recorder.unwritten == 1
    await take_writes(database)


async def test_old_requests_go_and_their_sums_stay(
    store: UsageStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_PAUSE_SECONDS", 0.0)
    await store.add([used(number, at=NOON - number * DAY / 100) for number in range(1200)])
    keeper = asyncio.create_task(prune_daily(store, 3, clock=lambda: NOON))

    async def pruned() -> bool:
        return await database.rows("SELECT count(*) FROM usage_requests") == [(301,)]

    await until(pruned)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert await database.rows("SELECT count(*), min(at) >= ? FROM usage_requests", (NOON - 3 * DAY,)) == [(301, 1)]
    assert await written(store) == 1200


@pytest.mark.parametrize("number", [0, 1, ROWS - 1, ROWS, 2 * ROWS + 1])
async def test_any_number_of_records_is_written_each_as_it_is(
    store: UsageStore, database: Database, number: int
) -> None:
    records = [
        used(each, at=NOON + each, key=f"k{each % 3}", cost=each)._replace(first_byte_ms=None) for each in range(number)
    ]
    await store.add(records)
    assert await database.rows("SELECT * FROM usage_requests ORDER BY rowid") == records
    assert await written(store) == number


async def test_costs_without_measure_are_written_too_and_stop_at_what_the_database_holds(store: UsageStore) -> None:
    for _ in range(10):
        await store.add([used(number, cost=MOST) for number in range(1000)])
    [total] = (await store.sums(By.KEY, WantedDays("2024-10-04", "2024-10-04"))).values()
    assert (total.requests, total.cost) == (10_000, 2**62)


def test_only_failures_that_are_not_the_clients_leaving_are_errors() -> None:
    kinds = [
        used(1),
        used(2, status=FAILED - 1),
        used(3, status=FAILED)._replace(first_byte_ms=None, cost=0),
        used(4, status=503)._replace(first_byte_ms=None, tokens_in=0, queue_ms=700),
        used(5, status=499)._replace(client_gone=1, estimated=1, first_byte_ms=0),
        used(6, status=200)._replace(client_gone=1, estimated=1, total_ms=9),
    ]
    assert list(added_up(kinds).values()) == [
        Sum(
            requests=6,
            errors=2,
            clients_gone=2,
            estimated=2,
            tokens_in=50,
            tokens_out=18,
            tokens_cached=30,
            queue_ms=705,
            answered=4,
            first_byte_ms=60,
            total_ms=159,
            cost=200,
        )
    ]


async def test_sums_are_by_key_endpoint_or_day_of_the_days_asked_for(store: UsageStore) -> None:
    await store.add(
        [used(1), used(2, key="x", status=502), used(3, at=NOON + DAY, endpoint="f"), used(4, at=NOON - 9 * DAY)]
    )
    days = WantedDays("2024-10-04", "2024-10-05")
    by_key, by_endpoint, by_day = [await store.sums(by, days) for by in (By.KEY, By.ENDPOINT, By.DAY)]
    assert {name: total.requests for name, total in by_key.items()} == {"k": 2, "x": 1}
    assert {name: total.requests for name, total in by_endpoint.items()} == {"e": 2, "f": 1}
    assert {name: (total.requests, total.errors) for name, total in by_day.items()} == {
        "2024-10-04": (2, 1),
        "2024-10-05": (1, 0),
    }
    one = await store.sums(By.DAY, days._replace(key="k", endpoint="e"))
    assert {name: total.requests for name, total in one.items()} == {"2024-10-04": 1}

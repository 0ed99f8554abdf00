"""The use of GPUs on its way to a real database: priced when it happens, kept while the database takes nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.database.connection import Database
from gateway.prices import Price, billionths
from gateway.usage.gpu_recorder import GpuRecorder
from gateway.usage.gpu_store import GpuStore
from gateway.usage.types import By, GpuSum, WantedDays
from tests.unit.test_holders import card, seen, worker

MIDNIGHT = 20_000 * 86_400.0
"""2024-10-04 00:00 UTC."""
KWH_MJ = 3_600_000_000
EVER = WantedDays("0001-01-01", "9999-12-31")


class Clock:
    now = 0.0

    def steady(self) -> float:
        return 500.0 + self.now

    def unix(self) -> float:
        return MIDNIGHT + self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> GpuStore:
    return GpuStore(database)


def recording(store: GpuStore, clock: Clock, prices: dict[str, Price], kwh_price: float | None = 0.3) -> GpuRecorder:
    return GpuRecorder(store, prices.get, kwh_price, clock.steady, clock.unix)


def looked(recorder: GpuRecorder, clock: Clock, seconds: float, energy_mj: int | None, *endpoints: str) -> None:
    clock.now += seconds
    recorder.notice(seen(*(worker(endpoint, "g0") for endpoint in endpoints), gpus=(card(0, energy_mj),)))


async def test_hours_and_energy_cost_what_they_cost_when_they_passed(store: GpuStore, clock: Clock) -> None:
    prices = {"e": Price(gpu_hour=2.0)}
    recorder = recording(store, clock, prices)
    looked(recorder, clock, 0, 0, "e")
    for hour in range(1, 3601):
        looked(recorder, clock, 1, hour * KWH_MJ // 3600, "e")
    await recorder.save()
    clock.now += 18
    prices["e"] = Price(gpu_hour=10.0)
    recorder.look()
    looked(recorder, clock, 18, KWH_MJ, "e")
    del prices["e"]
    looked(recorder, clock, 18, KWH_MJ, "e")
    looked(recorder, clock, 18, KWH_MJ, "e")
    await recorder.save()
    [(name, total)] = (await store.sums(By.ENDPOINT, EVER)).items()
    assert (name, total.gpu_ms, total.energy_mj) == ("e", 3_672_000, KWH_MJ)
    assert total.gpu_cost == pytest.approx(billionths(2.0 + 2.0 * 18 / 3600 + 10.0 * 36 / 3600), abs=3601)
    assert total.energy_cost == pytest.approx(billionths(0.3), abs=3601)


async def test_without_a_counter_or_a_price_energy_is_none_and_its_sum_what_is_known(
    store: GpuStore, clock: Clock
) -> None:
    recorder = recording(store, clock, {}, kwh_price=None)
    for energy in (None, None):
        looked(recorder, clock, 10, energy, "mute")
    await recorder.save()
    assert await store.sums(By.ENDPOINT, EVER) == {"mute": GpuSum(10_000, 0, None, None)}
    for energy in (100, 400):
        looked(recorder, clock, 10, energy, "mute")
    await recorder.save()
    assert await store.sums(By.ENDPOINT, EVER) == {"mute": GpuSum(30_000, 0, 300, None)}
    looked(recorder, clock, 10, None, "mute")
    await recorder.save()
    assert await store.sums(By.ENDPOINT, EVER) == {"mute": GpuSum(40_000, 0, 300, None)}


async def test_days_are_of_their_own_and_a_stop_writes_the_last_moment(store: GpuStore, clock: Clock) -> None:
    recorder = recording(store, clock, {})
    looked(recorder, clock, 0, 0, "a", "b")
    looked(recorder, clock, 86_390, 50, "a", "b")  # held all the while, though nobody looked
    looked(recorder, clock, 20, 70, "a")
    clock.now += 5
    await recorder.close()
    by_day = await store.sums(By.DAY, EVER)
    assert {day: total.gpu_ms for day, total in by_day.items()} == {"2024-10-04": 86_390_000, "2024-10-05": 25_000}
    assert {name: total.gpu_ms for name, total in (await store.sums(By.ENDPOINT, EVER)).items()} == {
        "a": 43_195_000 + 10_000 + 5_000,
        "b": 43_195_000 + 10_000,
    }


async def test_what_the_database_does_not_take_is_written_later_and_once(
    store: GpuStore, database: Database, clock: Clock
) -> None:
    recorder = recording(store, clock, {})
    looked(recorder, clock, 0, 0, "e")
    looked(recorder, clock, 10, 30, "e")
    await database.rows("PRAGMA query_only = ON")
    await recorder.flush()
    looked(recorder, clock, 10, 60, "e")
    await recorder.flush()
    assert await store.sums(By.ENDPOINT, EVER) == {}
    await database.rows("PRAGMA query_only = OFF")
    await recorder.flush()
    await recorder.flush()
    [total] = (await store.sums(By.DAY, EVER)).values()
    assert (total.gpu_ms, total.energy_mj) == (20_000, 60)

"""Single requests out of a real database, page by page: none twice, none left out, whatever is looked for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.database.connection import Database
from gateway.types import Used
from gateway.usage import request_store as module
from gateway.usage.request_store import Place, RequestStore, Wanted
from gateway.usage.store import UsageStore
from tests.unit.test_recorder import NOON, used

EVER = Place(float("inf"))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


async def pages(database: Database, wanted: Wanted, most: int) -> list[list[Used]]:
    """Every page, one after another."""
    store, found = RequestStore(database), []
    while True:
        page, place = await store.page(wanted, most)
        found.append(page)
        if place is None:
            return found
        wanted = wanted._replace(before=place)


@pytest.mark.parametrize(("look", "looks"), [(3, 2), (10, 100), (5_000, 100)])
async def test_pages_follow_each_other_whatever_one_statement_looks_at(
    database: Database, monkeypatch: pytest.MonkeyPatch, look: int, looks: int
) -> None:
    monkeypatch.setattr(module, "LOOK", look)
    monkeypatch.setattr(module, "LOOKS", looks)
    # several end at the same instant, and not all in the order in which they are written
    records = [
        used(number, at=NOON + number // 7, key="ab"[number % 2], endpoint="xyz"[number % 3]) for number in range(60)
    ]
    await UsageStore(database).add([*records[20:], *records[:20]])

    async def numbers(wanted: Wanted, most: int) -> list[int]:
        return [int(one.request_id[1:]) for page in await pages(database, wanted, most) for one in page]

    everything = await numbers(Wanted(0.0, EVER), 7)
    assert sorted(everything) == list(range(60))
    assert [number // 7 for number in everything] == sorted((number // 7 for number in range(60)), reverse=True)
    assert sorted(await numbers(Wanted(0.0, EVER, key="a", endpoint="y"), 4)) == list(range(4, 60, 6))
    assert sorted(await numbers(Wanted(NOON + 2, Place(NOON + 4)), 5)) == list(range(14, 28))
    assert await numbers(Wanted(0.0, EVER, key="nobody"), 5) == []
    assert all(len(page) <= 7 for page in await pages(database, Wanted(0.0, EVER), 7))


async def test_a_record_comes_back_as_it_went_in(database: Database) -> None:
    await UsageStore(database).add([used(5, cost=77)])
    assert await RequestStore(database).page(Wanted(0.0, EVER), 10) == ([used(5, cost=77)], None)


async def test_a_page_is_found_by_the_index_of_times(database: Database) -> None:
    words = {"first": 0.0, **EVER._asdict(), "look": 5, "key": None, "endpoint": None, "most": 5}
    plan = await database.rows(f"EXPLAIN QUERY PLAN {module.FOUND}", words)
    assert any("usage_requests_at" in str(step) for step in plan)
    assert not any("SCAN usage_requests" in str(step) for step in plan)

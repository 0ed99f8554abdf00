"""The decision log on a real disk: what is written, how much of it, and what comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.decisions import BEFORE_NAME, FILE_NAME, DecisionLog, Entry
from gateway.scheduling.planner import plan
from gateway.scheduling.types import Situation
from tests.support.planning import endpoint, situation, waiting, worker
from tests.support.waiting import wait_until_async

CARD = 20_000


@contextlib.asynccontextmanager
async def writing(log: DecisionLog) -> AsyncIterator[None]:
    task = asyncio.create_task(log.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def situations() -> list[Situation]:
    busy = endpoint("a", **waiting())
    return [situation([busy], one=CARD), situation([busy], [worker("a", 1, "one")], one=CARD)]


async def entries(log: DecisionLog) -> list[Entry]:
    text = b"".join([piece async for piece in log.read()])
    return [msgspec.json.decode(line, type=Entry) for line in text.splitlines()]


async def test_a_plan_that_is_new_is_written_whole_and_the_same_one_is_not(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path)
    first, second = situations()
    for one in (first, first, second, second):
        log.note(one, plan(one))
    await log.close()
    found = await entries(log)
    assert [(entry.situation, entry.plan) for entry in found] == [(one, plan(one)) for one in (first, second)]


async def test_two_files_are_kept_and_neither_grows_beyond_its_limit(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, limit=8_000)
    pair = situations()
    async with writing(log):
        for number in range(40):
            one = pair[number % 2]
            log.note(one, plan(one))
            await wait_until_async(lambda: not log.unwritten)
    sizes = [(tmp_path / name).stat().st_size for name in (BEFORE_NAME, FILE_NAME)]
    assert all(0 < size <= 8_000 for size in sizes)
    assert len(await entries(log)) > 2


async def test_a_disk_that_takes_nothing_holds_up_nobody(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "missing")
    first, second = situations()
    async with writing(log):
        log.note(first, plan(first))
        await wait_until_async(lambda: log._failing)
        (tmp_path / "missing").mkdir()
        log.note(second, plan(second))
        await wait_until_async((tmp_path / "missing" / FILE_NAME).exists)
        await wait_until_async(lambda: not log._failing)
    assert [entry.situation for entry in await entries(log)] == [second]


async def test_before_anything_was_decided_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert await entries(DecisionLog(tmp_path)) == []


def test_an_entry_of_an_older_version_lacks_fields_and_is_read_all_the_same() -> None:
    one = situations()[0]
    entry = msgspec.to_builtins(Entry(at=1.0, situation=one, plan=plan(one)))
    del entry["situation"]["endpoints"][0]["on_trial"]
    del entry["plan"]["residencies"]
    assert msgspec.convert(entry, Entry).plan.desired == plan(one).desired
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({}, Entry)

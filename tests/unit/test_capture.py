"""Captured requests: bounded in memory, in size and in age, and gone when they are deleted."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.capture import recorder
from gateway.capture.recorder import Captures
from gateway.capture.store import CaptureStore
from gateway.database.connection import Database
from gateway.settings import Settings
from gateway.types import Sent

SETTINGS = Settings(admin_key="an-admin-key-of-the-tests", capture_days=2, capture_kib=1)
DAY = 86_400.0


class Clock:
    now = 100 * DAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def captures(tmp_path: Path) -> AsyncIterator[Captures]:
    database = await Database.open(tmp_path)
    yield Captures(CaptureStore(database), SETTINGS, Clock())
    await database.close()


def sent(key: str = "k", at: float = 100 * DAY, prompt: bytes = b'{"a": "b"}') -> Sent:
    return Sent(at, key, "r", "e", "/v1/completions", 200, streamed=False, prompt=prompt, answer=b'{"c": "d"}')


async def kept(captures: Captures) -> list[str]:
    return [captured.key_id for captured in await captures.page(None, None, 1000)]


async def test_a_key_is_captured_from_when_it_is_turned_on_until_it_is_turned_off(captures: Captures) -> None:
    await captures.turn_on("k")
    await captures.turn_on("k")
    captures.take(sent())
    assert await kept(captures) == ["k"]
    captures.take(sent())  # still on its way when it is turned off
    assert await captures.turn_off("k") == 1
    assert await kept(captures) == []
    again = Captures(captures._store, SETTINGS)
    await again.load()
    assert again.keys == set()


async def test_texts_are_cut_and_the_queue_is_bounded(captures: Captures) -> None:
    await captures.turn_on("k")
    captures.take(sent(prompt=b'"' + b"x " * 2500 + b'"'))
    (one,) = await captures.page("k", None, 10)
    assert len(one.prompt) == 1024
    for _ in range(3):
        captures.take(sent(prompt=b"x" * (recorder.WAITING_BYTES // 2)))
    assert len(captures._waiting) == 1


async def test_what_is_old_goes_and_of_the_rest_the_oldest_beyond_the_bound(captures: Captures) -> None:
    await captures.turn_on("k")
    await captures.turn_on("old")
    captures.take(sent("old", at=97 * DAY))
    captures.take(sent())
    await captures.flush()
    await captures.prune()
    assert await kept(captures) == ["k"]
    tiny = Captures(captures._store, msgspec.structs.replace(SETTINGS, capture_mib=0), Clock())
    await tiny.prune()
    assert await kept(captures) == []

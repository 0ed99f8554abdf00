"""Model files are read beside the event loop: whoever plans waits for them, whoever shows something does not."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import model_facts
from gateway.database.connection import Database
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import EndpointSpec
from gateway.model_facts import BEING_READ, FACTS_SECONDS, NOT_HERE, ModelsSeen
from tests.support.waiting import wait_until_async

SPEC = EndpointSpec(name="a", model="local/a")
HUB = EndpointSpec(name="b", model="org/b")


def write_model(root: Path, size: int = 10) -> None:
    folder = root / "local" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "weights.gguf").write_bytes(bytes(size))


class House:
    """What is seen of a models folder, and the time."""

    def __init__(self, root: Path, database: Database) -> None:
        self.now = 1000.0
        self.root = root
        self.registry = Registry(EndpointStore(database), ModelsFolder(root), 512)
        self.seen = ModelsSeen(self.registry, lambda: self.now)

    def size(self) -> int | None:
        facts, _ = self.seen.of(SPEC)
        return facts.weights.on_disk if facts is not None else None


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    database = await Database.open(tmp_path / "data")
    write_model(tmp_path / "models")
    yield House(tmp_path / "models", database)
    await database.close()


async def test_a_look_tells_what_the_files_tell(house: House) -> None:
    await house.seen.look([SPEC, HUB])
    assert house.size() == 10
    assert house.seen.of(HUB) == (None, NOT_HERE)


async def test_nobody_who_only_shows_something_waits_for_headers(house: House) -> None:
    assert house.seen.of(SPEC) == (None, BEING_READ)
    await wait_until_async(lambda: house.size() == 10, "they were read meanwhile")


async def test_what_was_seen_holds_until_the_files_were_looked_at_again(house: House) -> None:
    await house.seen.look([SPEC])
    write_model(house.root, size=20)
    assert house.size() == 10
    house.now += FACTS_SECONDS
    assert house.size() == 10, "its headers are being read"
    await house.seen.look([SPEC])
    assert house.size() == 20


async def test_what_takes_no_reading_is_told_at_once(house: House) -> None:
    await house.seen.look([SPEC])
    shutil.rmtree(house.root / "local" / "a")
    house.seen.forget()
    facts, why = house.seen.of(SPEC)
    assert facts is None
    assert "no folder" in why


async def test_while_a_known_model_is_looked_at_again_after_a_change_it_is_what_it_was(house: House) -> None:
    await house.seen.look([SPEC])
    house.seen.forget()
    looking = asyncio.create_task(house.seen.look([SPEC]))
    await asyncio.sleep(0)
    assert house.size() == 10
    await looking
    await house.seen.look([HUB])
    assert house.seen.of(HUB) == (None, NOT_HERE)
    write_model(house.root, size=20)
    assert house.seen.of(SPEC) == (None, BEING_READ), "what no endpoint is served from is not kept"


async def test_a_change_that_was_registered_has_read_its_files_before_it_is_checked(house: House) -> None:
    await house.registry.look(SPEC)
    assert house.size() == 10
    await house.registry.look(HUB, {"model": SPEC.model})
    await house.registry.look(SPEC, {"model": 5})
    await house.registry.look(SPEC, {"model": "local/nowhere"})


async def test_a_disk_that_hangs_holds_up_no_more_than_one_plan_for_a_while(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_facts, "LOOK_SECONDS", 0.05)
    config = house.root / "local" / "a" / "config.json"
    config.unlink()
    os.mkfifo(config)
    await house.seen.look([SPEC])
    assert house.seen.of(SPEC) == (None, BEING_READ)
    house.now += 1
    async with asyncio.timeout(0.05):
        await house.seen.look([SPEC])
    await asyncio.to_thread(config.write_text, "{}")  # the disk comes back, or the thread would never end
    await wait_until_async(lambda: house.seen.of(SPEC)[1] != BEING_READ, "the look is over")

"""Files are read beside the event loop: whoever plans waits for them, whoever shows something does not."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import seen_files
from gateway.database.connection import Database
from gateway.endpoints import registry as registry_module
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import AdapterSource, EndpointSpec, ModelFacts
from gateway.errors import BadRequest, DiskUnavailable
from gateway.seen_files import BEING_READ, FRESH_SECONDS, SeenFiles
from tests.support.waiting import wait_until_async
from worker_manager.contract import HostFacts

SPEC = EndpointSpec(name="a", model="local/a")
HUB = EndpointSpec(name="b", model="org/b")
HOST = HostFacts(launcher="process", device="cpu", memory_total_mib=64_000)
NOTHING = (None, "")


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
        self.seen: SeenFiles[EndpointSpec, ModelFacts] = SeenFiles(self.registry.facts, lambda: self.now)

    def size(self) -> int | None:
        facts, _ = self.seen.of(SPEC)
        return facts.weights.on_disk if facts is not None else None

    def hang(self) -> Path:
        """Have the model's disk hang; who writes to this path has it back."""
        config = self.root / "local" / "a" / "config.json"
        config.unlink()
        os.mkfifo(config)
        return config


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    database = await Database.open(tmp_path / "data")
    write_model(tmp_path / "models")
    yield House(tmp_path / "models", database)
    await database.close()


async def test_a_look_tells_what_the_files_tell(house: House) -> None:
    await house.seen.look([SPEC, HUB])
    assert house.size() == 10
    assert house.seen.of(HUB) == NOTHING


async def test_nobody_who_only_shows_something_waits_for_files(house: House) -> None:
    assert house.seen.of(SPEC) == (None, BEING_READ)
    await wait_until_async(lambda: house.size() == 10, "they were read meanwhile")


async def test_what_was_seen_holds_until_the_files_were_looked_at_again(house: House) -> None:
    await house.seen.look([SPEC])
    write_model(house.root, size=20)
    assert house.size() == 10
    house.now += FRESH_SECONDS
    assert house.size() == 10, "they are being read"
    await house.seen.look([SPEC])
    assert house.size() == 20


async def test_what_is_wrong_with_files_is_told_in_their_place(house: House) -> None:
    await house.seen.look([SPEC])
    shutil.rmtree(house.root / "local" / "a")
    house.now += FRESH_SECONDS
    await house.seen.look([SPEC])
    facts, why = house.seen.of(SPEC)
    assert facts is None
    assert "no folder" in why


async def test_while_known_files_are_looked_at_again_after_a_change_they_are_what_they_were(house: House) -> None:
    await house.seen.look([SPEC])
    house.seen.forget()
    looking = asyncio.create_task(house.seen.look([SPEC]))
    await asyncio.sleep(0)
    assert house.size() == 10
    await looking
    await house.seen.look([HUB])
    assert house.seen.of(HUB) == NOTHING
    write_model(house.root, size=20)
    assert house.seen.of(SPEC) == (None, BEING_READ), "what no endpoint is served from is not kept"


async def test_what_was_read_before_a_change_does_not_count_after_it() -> None:
    answers: list[str] = []

    async def read(_spec: EndpointSpec) -> str:
        answers.append("after" if answers else "before")
        if answers == ["before"]:
            seen.forget()
        return answers[-1]

    seen: SeenFiles[EndpointSpec, str] = SeenFiles(read)
    await seen.look([SPEC])
    assert seen.of(SPEC) == ("after", "")


@pytest.mark.parametrize("stay", [True, False])
async def test_files_that_cannot_be_read_are_as_they_were_only_where_that_is_wanted(*, stay: bool) -> None:
    problems: list[BadRequest] = []

    async def read(_source: AdapterSource) -> str:
        for problem in problems:
            raise problem
        return "read"

    now, source = 1000.0, AdapterSource(model="local/red")
    seen: SeenFiles[AdapterSource, str] = SeenFiles(read, lambda: now, unreadable_stay=stay)
    await seen.look([source])
    problems.append(BadRequest("broken"))
    now += FRESH_SECONDS
    await seen.look([source])
    assert seen.of(source) == ("read" if stay else None, "broken")


async def test_a_disk_that_hangs_holds_up_no_more_than_one_plan_for_a_while(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_files, "LOOK_SECONDS", 0.05)
    disk = house.hang()
    await house.seen.look([SPEC])
    assert house.seen.of(SPEC) == (None, BEING_READ)
    house.now += 1
    monkeypatch.setattr(seen_files, "LOOK_SECONDS", 600.0)
    await house.seen.look([SPEC])
    await asyncio.to_thread(disk.write_text, "{}")  # the disk comes back, or the thread would never end
    await wait_until_async(lambda: house.seen.of(SPEC)[1] != BEING_READ, "the look is over")


async def test_who_registers_what_lies_on_a_disk_that_hangs_is_told_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "FILES_SECONDS", 0.05)
    disk = house.hang()
    with pytest.raises(DiskUnavailable, match="nothing was changed: is its disk"):
        await house.registry.checked(SPEC, HOST)
    await asyncio.to_thread(disk.write_text, "{}")
    assert house.registry.all() == []

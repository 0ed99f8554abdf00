"""Which adapters workers should have while files can't be read for a moment: those they had."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.catalogue import Catalogue
from gateway.database.connection import Database
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import EndpointSpec
from gateway.learned import Learned
from gateway.scheduling.types import WantedEndpoint
from gateway.sizes import Sizes
from tests.support.adapters import adapter_folder
from tests.support.simulated_engine import model_folder
from worker_manager.contract import HostFacts

HOST = HostFacts(launcher="process", device="cpu", memory_total_mib=64_000)
ADAPTERS = {"red": {"model": "local/red"}, "far": {"model": "org/far"}}


class House:
    """One endpoint with an adapter that is here and one that is not, and the time."""

    def __init__(self, database: Database, models: Path) -> None:
        self.now, self.local = 1000.0, models / "local"
        model_folder(self.local / "tiny")
        adapter_folder(self.local / "red")
        self.registry = Registry(EndpointStore(database), ModelsFolder(models), 512)
        self.catalogue = Catalogue(self.registry, Sizes(512, Learned(database)), lambda: self.now)

    async def begin(self) -> None:
        await self.registry.load()
        spec = msgspec.convert({"name": "a", "model": "local/tiny", "adapters": ADAPTERS}, EndpointSpec)
        await self.registry.add(await self.registry.checked(spec, HOST))

    async def wanted(self) -> WantedEndpoint:
        """As it is wanted some time later, when all files were looked at again."""
        self.now += 60
        await self.catalogue.look()
        (one,) = self.catalogue.wanted(HOST)
        return one


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    database = await Database.open(tmp_path / "data")
    made = House(database, tmp_path / "models")
    await made.begin()
    yield made
    await database.close()


def names(one: WantedEndpoint) -> list[str]:
    return [adapter.name for adapter in one.adapters]


async def test_what_is_here_is_wanted_and_what_is_not_is_still_to_come(house: House) -> None:
    one = await house.wanted()
    assert (names(one), one.adapter_problems) == (["red"], {"far": ""})


async def test_workers_keep_their_adapters_while_the_model_of_their_endpoint_cannot_be_read(house: House) -> None:
    here = await house.wanted()
    (house.local / "tiny").rename(house.local / "away")
    gone = await house.wanted()
    assert (here.template is None, gone.template is None) == (False, True)
    assert (names(gone), gone.adapter_problems) == (["red"], {"far": ""})


async def test_an_adapter_whose_files_are_being_replaced_stays_also_where_something_else_was_changed(
    house: House,
) -> None:
    before = await house.wanted()
    (house.local / "red" / "adapter_config.json").write_text("{")
    house.catalogue.forget()
    assert (await house.wanted()).adapters == before.adapters
    adapter_folder(house.local / "red", rank=16)
    assert (await house.wanted()).adapters != before.adapters

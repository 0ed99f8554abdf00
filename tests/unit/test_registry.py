"""Endpoints in memory and in a real database file."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.database.connection import Database
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry, near_names, shown_name
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import AdapterSource, Endpoint, EndpointSpec, Meant
from gateway.errors import BadRequest, Conflict, NotFound, UnknownModel
from tests.support.adapters import adapter_folder
from worker_manager.contract import Failure, FailureKind, HostFacts, LoraRoom

HOST = HostFacts(launcher="process", device="cpu", memory_total_mib=64_000)


def everybody(_name: str) -> bool:
    return True


def spec(name: str, **fields: Any) -> EndpointSpec:
    return msgspec.convert({"name": name, "model": "local/tiny", **fields}, EndpointSpec)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "data")
    yield opened
    await opened.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "local" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return tmp_path / "models"


@pytest.fixture
async def registry(database: Database, models: Path) -> Registry:
    return await opened(database, models)


async def opened(database: Database, models: Path) -> Registry:
    made = Registry(EndpointStore(database), ModelsFolder(models), 512)
    await made.load()
    return made


async def register(registry: Registry, name: str, **fields: Any) -> EndpointSpec:
    return (await registry.add(await registry.checked(spec(name, **fields), HOST))).spec


async def test_an_endpoint_is_found_by_its_name_and_its_aliases_before_and_after_a_restart(
    registry: Registry, database: Database, models: Path
) -> None:
    await register(registry, "Org/Qwen", aliases=["gpt-4", "small"], engine_args={"max-num-seqs": 8})
    again = await opened(database, models)
    for one in (registry, again):
        assert one.resolve("small", everybody) == one.resolve("Org/Qwen", everybody) == Meant("Org/Qwen")
        assert one.get("Org/Qwen").spec.gpus == 0, "what depended on the machine was filled in"
        assert [endpoint.spec.name for endpoint in one.all()] == ["Org/Qwen"]


@pytest.mark.parametrize("fields", [{"name": "a"}, {"name": "b"}, {"name": "c", "aliases": ["b"]}])
async def test_a_name_that_is_taken_as_name_or_alias_is_refused_and_changes_nothing(
    registry: Registry, fields: dict[str, Any]
) -> None:
    await register(registry, "a", aliases=["b"])
    with pytest.raises(Conflict, match="is taken by"):
        await register(registry, **fields)
    assert [endpoint.spec.name for endpoint in registry.all()] == ["a"]


async def test_two_that_register_one_name_at_once_do_not_both_succeed(registry: Registry) -> None:
    first, second = await registry.checked(spec("a"), HOST), await registry.checked(spec("a", max_workers=3), HOST)
    await registry.add(first)
    with pytest.raises(Conflict, match="There is an endpoint 'a' already"):
        await registry.add(second)
    assert registry.get("a").spec == first


async def test_an_unknown_name_is_answered_with_near_ones(registry: Registry) -> None:
    with pytest.raises(UnknownModel, match="none is registered yet"):
        registry.resolve("qwen", everybody)
    await register(registry, "qwen3-8b", aliases=["chat"])
    with pytest.raises(UnknownModel, match="Did you mean 'qwen3-8b'") as caught:
        registry.resolve("qwen3-9b", everybody)
    assert caught.value.param == "model"
    with pytest.raises(NotFound, match="Did you mean 'qwen3-8b'"):
        registry.get("qwen3")
    with pytest.raises(UnknownModel, match="There is: 'chat', 'qwen3-8b'"):
        registry.resolve("zzz", everybody)


async def test_an_endpoint_the_key_may_not_use_does_not_exist_for_it(registry: Registry) -> None:
    await register(registry, "secret-model", aliases=["secret-alias"])
    for name in ("secret-model", "secret-alias", "secret-modem"):
        with pytest.raises(UnknownModel) as caught:
            registry.resolve(name, lambda _name: False)
        assert "Did you mean" not in caught.value.message


def test_a_long_list_of_names_is_cut() -> None:
    assert near_names("zzz", [f"name-{number:02}" for number in range(12)]).endswith("'name-09', …")


async def test_a_change_keeps_what_it_does_not_name(registry: Registry, database: Database, models: Path) -> None:
    await register(registry, "a", aliases=["b"], max_workers=3)
    changed = await registry.merged("a", {"per_worker": 5, "aliases": ["c"]}, HOST)
    await registry.replace(changed)
    again = await opened(database, models)
    for one in (registry, again):
        assert (one.get("a").spec.max_workers, one.get("a").spec.per_worker) == (3, 5)
        assert one.resolve("c", everybody).name == "a"
        with pytest.raises(UnknownModel):
            one.resolve("b", everybody)
    assert registry.get("a").created_at == again.get("a").created_at


@pytest.mark.parametrize(
    "patch",
    [{"name": "other"}, {"max_workers": 0}, {"max_workers": "many"}, {"unknown": 1}, {"min_workers": 9}, {"gpus": 1}],
    ids=str,
)
async def test_a_change_that_does_not_fit_is_refused_and_changes_nothing(
    registry: Registry, patch: dict[str, Any]
) -> None:
    before = await register(registry, "a")
    with pytest.raises(BadRequest):
        await registry.merged("a", patch, HOST)
    assert registry.get("a").spec == before


async def test_a_change_may_keep_its_own_names_but_take_nobody_elses(registry: Registry) -> None:
    await register(registry, "a", aliases=["b"])
    await register(registry, "c")
    assert (await registry.merged("a", {"aliases": ["b", "d"]}, HOST)).aliases == ("b", "d")
    with pytest.raises(Conflict):
        await registry.merged("a", {"aliases": ["c"]}, HOST)
    with pytest.raises(NotFound):
        await registry.merged("nobody", {}, HOST)


async def test_a_deleted_endpoint_frees_all_its_names(registry: Registry, database: Database, models: Path) -> None:
    await register(registry, "a", aliases=["b"])
    await registry.remove("a")
    assert (await opened(database, models)).all() == []
    await register(registry, "b", aliases=["a"])
    with pytest.raises(NotFound):
        await registry.remove("a")


async def test_a_row_that_cannot_be_read_harms_only_itself(
    registry: Registry, database: Database, models: Path
) -> None:
    await register(registry, "good")
    async with database.transaction() as write:
        for name, stored in (("future", '{"name":"future","model":"local/tiny","novel":1}'), ("odd", "[]")):
            await write.execute(
                "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, ?, 0, 0)", (name, stored)
            )
    again = await opened(database, models)
    assert [endpoint.spec.name for endpoint in again.all()] == ["good"]
    with pytest.raises(Conflict):
        await register(again, "future")
    assert len(await database.rows("SELECT * FROM endpoints")) == 3


# changes of how an endpoint is served


FAILURE = Failure(kind=FailureKind.BAD_FLAG, message="no such flag", hint="take it away", at=1.0)


async def changed(registry: Registry, *, again: bool = False, **fields: Any) -> Endpoint:
    return await registry.replace(await registry.merged("a", fields, HOST), again=again)


async def test_what_served_and_why_a_change_did_not_outlive_a_restart(
    registry: Registry, database: Database, models: Path
) -> None:
    first = await register(registry, "a")
    assert await registry.prove(first, "local/tiny")
    second = (await changed(registry, engine_args={"seed": 1})).spec
    rolled_back = await registry.roll_back(second, FAILURE, same_files=True)
    assert rolled_back is not None
    assert rolled_back.changed == {"engine_args": {"from": {}, "to": {"seed": 1}}}
    again = (await opened(database, models)).get("a")
    assert again == registry.get("a")
    assert (again.spec, again.good, again.rolled_back) == (second, first, rolled_back)


async def test_a_further_change_or_the_same_once_more_is_a_new_try_and_labels_are_not(registry: Registry) -> None:
    first = await register(registry, "a")
    await registry.prove(first, "local/tiny")
    second = (await changed(registry, engine_args={"seed": 1})).spec
    await registry.roll_back(second, FAILURE, same_files=True)
    kept = await changed(registry, labels={"x": "y"})
    assert kept.rolled_back is not None
    assert (await changed(registry, again=True, engine_args={"seed": 1})).rolled_back is None
    await registry.roll_back(second, FAILURE, same_files=True)
    third = await changed(registry, engine_args={"seed": 2})
    assert third.rolled_back is None
    assert third.changed_at > kept.changed_at
    assert third.good == first


async def test_what_is_found_out_about_a_spec_that_has_changed_since_counts_for_nothing(registry: Registry) -> None:
    first = await register(registry, "a")
    await registry.prove(first, "local/tiny")
    second = (await changed(registry, engine_args={"seed": 1})).spec
    await changed(registry, engine_args={"seed": 2})
    assert not await registry.prove(second, "local/tiny")
    assert await registry.roll_back(second, FAILURE, same_files=True) is None
    assert registry.get("a").good == first
    assert registry.get("a").rolled_back is None
    await registry.remove("a")
    assert not await registry.prove(second, "local/tiny")


async def test_what_never_served_is_nothing_to_go_back_to(registry: Registry) -> None:
    first = await register(registry, "a")
    assert await registry.roll_back(first, FAILURE, same_files=True) is None


async def test_users_changes_are_heard_of(registry: Registry) -> None:
    heard: list[tuple[str, str, tuple[str, ...]]] = []
    registry.noted = lambda what, endpoint, fields: heard.append((what, endpoint.spec.name, fields))
    await register(registry, "a")
    await changed(registry, labels={"x": "y"}, priority=3)
    await registry.remove("a")
    assert heard == [("created", "a", ()), ("changed", "a", ("priority", "labels")), ("deleted", "a", ())]


# adapters

RED = {"red": {"model": "local/red"}}


async def test_an_adapter_is_found_by_its_name_and_belongs_to_its_endpoint(registry: Registry, models: Path) -> None:
    adapter_folder(models / "local" / "red")
    made = await register(registry, "a", adapters=RED)
    assert made.lora == LoraRoom()
    assert registry.resolve("red", everybody) == Meant("a", "red")
    with pytest.raises(UnknownModel):
        registry.resolve("red", lambda name: name != "a")
    await registry.replace(await registry.adapted("a", "red", None, HOST))
    with pytest.raises(UnknownModel):
        registry.resolve("red", everybody)
    assert registry.get("a").spec.lora == LoraRoom(), "the room stays: nothing starts anew"
    with pytest.raises(NotFound, match="has no adapter 'red'"):
        await registry.adapted("a", "red", None, HOST)


async def test_no_two_things_have_one_name(registry: Registry, models: Path) -> None:
    adapter_folder(models / "local" / "red")
    await register(registry, "a", aliases=["x"], adapters=RED)
    await register(registry, "b")
    for name, fields in (("red", {}), ("c", {"aliases": ["red"]}), ("c", {"adapters": {"red": RED["red"]}})):
        with pytest.raises(Conflict, match="taken by an adapter of the endpoint 'a'"):
            await registry.checked(spec(name, **fields), HOST)
    for name in ("a", "x"):
        with pytest.raises(Conflict, match="is taken by"):
            await registry.adapted("b", name, AdapterSource(model="local/red"), HOST)
        with pytest.raises(BadRequest, match="has a name that the endpoint itself goes by"):
            await registry.adapted("a", name, AdapterSource(model="local/red"), HOST)


async def test_an_adapter_of_a_higher_rank_makes_more_room_unless_the_room_was_named(
    registry: Registry, models: Path
) -> None:
    adapter_folder(models / "local" / "red")
    adapter_folder(models / "local" / "wide", rank=64)
    await register(registry, "a", adapters=RED)
    wide = AdapterSource(model="local/wide")
    assert (await registry.adapted("a", "wide", wide, HOST)).lora == LoraRoom(max_rank=64)
    with pytest.raises(BadRequest, match=r"rank 64 and lora\.max_rank is 16"):
        await registry.merged("a", {"adapters": {"wide": {"model": "local/wide"}}, "lora": {"max_rank": 16}}, HOST)


async def test_an_adapter_whose_files_are_gone_stands_in_the_way_of_no_other_change(
    registry: Registry, models: Path
) -> None:
    for name in ("red", "blue"):
        adapter_folder(models / "local" / name)
    await register(registry, "a", adapters={**RED, "blue": {"model": "local/blue"}})
    for name in ("red", "blue"):
        (models / "local" / name / "adapter_model.safetensors").unlink()
    assert (await registry.merged("a", {"idle_seconds": 5}, HOST)).idle_seconds == 5
    assert list((await registry.adapted("a", "red", None, HOST)).adapters) == ["blue"]
    with pytest.raises(BadRequest, match=r"has no adapter_model\.safetensors"):
        await registry.adapted("a", "green", AdapterSource(model="local/red"), HOST)


def test_a_name_as_long_as_a_body_is_neither_compared_nor_told_whole() -> None:
    """Comparing it would take seconds, in which nobody is answered."""
    assert near_names("ab" * 10_000_000, ["ab", "first"]) == ". There is: 'ab', 'first'"
    assert len(shown_name("a" * 10_000_000)) < 300

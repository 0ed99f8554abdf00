"""Which adapters an endpoint may have, and the room its engines get for them."""

from typing import Any

import msgspec
import pytest

from gateway.endpoints.adapter_rules import check_adapters, misfit, settle_room
from gateway.endpoints.types import AdapterFacts, EndpointSpec, ModelFacts
from gateway.errors import BadRequest
from gateway.memory.weights import Weights
from tests.unit.test_memory_plan import LLAMA_8B
from worker_manager.contract import LoraRoom

MODEL = ModelFacts(path="local/base", weights=Weights(), shape=LLAMA_8B)


def facts(rank: int = 8, **fields: Any) -> AdapterFacts:
    return AdapterFacts(path="local/x", revision="a1", rank=rank, size_bytes=1, **fields)


def spec(*names: str, **fields: Any) -> EndpointSpec:
    adapters = {name: {"model": f"local/{name}"} for name in names}
    return msgspec.convert({"name": "a", "model": "local/base", "adapters": adapters, **fields}, EndpointSpec)


def room(found: dict[str, AdapterFacts | None], **fields: Any) -> LoraRoom | None:
    return settle_room(spec(*found, **fields), found, fixed=False).lora


def test_who_has_no_adapters_gets_no_room() -> None:
    assert room({}) is None
    assert settle_room(spec(lora={"max_rank": 64}), {}, fixed=True).lora == LoraRoom(max_rank=64)


def test_the_first_adapter_brings_room_for_more() -> None:
    assert room({"x": facts(rank=4)}) == LoraRoom(max_rank=16, max_loras=4, max_cpu_loras=16)
    assert room({"x": facts(rank=17)}) == LoraRoom(max_rank=32)
    assert room({"x": None}) == LoraRoom(), "one that is not downloaded yet tells no rank"


def test_room_grows_where_it_must_and_never_shrinks() -> None:
    given = {"max_rank": 64, "max_loras": 2, "max_cpu_loras": 2}
    assert room({"x": facts(rank=8)}, lora=given) == msgspec.convert(given, LoraRoom)
    many: dict[str, AdapterFacts | None] = {f"x{number}": facts() for number in range(17)}
    assert room(many) == LoraRoom(max_cpu_loras=32)


@pytest.mark.parametrize(
    ("lora", "found", "said"),
    [
        ({"max_rank": 16}, {"x": facts(rank=20)}, "has rank 20 and lora.max_rank is 16: set it to 32"),
        ({"max_loras": 1, "max_cpu_loras": 1}, {"x": facts(), "y": facts()}, "2 adapters were asked for"),
        ({"max_loras": 8, "max_cpu_loras": 4}, {}, r"lora.max_cpu_loras \(4\) is less than lora.max_loras \(8\)"),
    ],
)
def test_room_that_was_asked_for_is_not_changed_but_refused(
    lora: dict[str, int], found: dict[str, AdapterFacts | None], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        settle_room(spec(*found, lora=lora), found, fixed=True)


def test_no_engine_takes_a_rank_above_512() -> None:
    with pytest.raises(BadRequest, match="rank 513 is above"):
        room({"x": facts(rank=513)})


def test_there_is_an_end_to_the_number_of_adapters() -> None:
    most: dict[str, AdapterFacts | None] = {f"x{number}": facts() for number in range(1024)}
    assert room(most) == LoraRoom(max_cpu_loras=1024)
    with pytest.raises(BadRequest, match="may have 1024 adapters, not 1025"):
        room({**most, "more": facts()})


def test_an_adapter_of_another_model_is_refused_by_its_widths() -> None:
    one = spec("x", lora={})
    assert misfit(facts(hidden_size=4096, layers=32), one, MODEL) == ""
    narrow = misfit(facts(hidden_size=2048, layers=16, base_model="org/small"), one, MODEL)
    assert narrow == (
        "it is for a model of hidden size 2048, and that of 'local/base' is 4096 (it was made for 'org/small')"
    )
    assert "it changes 40 layers, and 'local/base' has 32" in misfit(facts(hidden_size=4096, layers=40), one, MODEL)
    assert misfit(facts(hidden_size=2048), one, msgspec.structs.replace(MODEL, shape=None)) == "", "nothing is known"
    with pytest.raises(BadRequest, match=r"The adapter 'x' \(local/x\) does not fit: it is for a model of hidden size"):
        check_adapters(one, {"x": facts(hidden_size=2048)}, MODEL)


def test_what_came_later_than_the_room_may_not_fit_into_it() -> None:
    assert "rank is 64 and lora.max_rank is 16" in misfit(facts(rank=64), spec("x", lora={}), MODEL)
    assert "without room for adapters" in misfit(facts(), spec("x"), MODEL)

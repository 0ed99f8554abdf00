"""The rules an endpoint must keep."""

import re
from typing import Any

import msgspec
import pytest

from gateway.endpoints.rules import check, settle
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.errors import BadRequest
from gateway.memory.host import GPU_OVERHEAD_MIB, HOST_MARGIN_MIB, cpu_need
from gateway.memory.weights import Weights
from worker_manager.contract import MODEL_PATH_PATTERN, Gpu, HostFacts

MARGIN = 512


def host(*cards: int) -> HostFacts:
    gpus = tuple(
        Gpu(index=index, uuid=f"GPU-{index}", name="card", memory_total_mib=total, memory_used_mib=0)
        for index, total in enumerate(cards)
    )
    return HostFacts(launcher="process", device="cuda" if gpus else "cpu", gpus=gpus, memory_total_mib=64_000)


def spec(**fields: Any) -> EndpointSpec:
    return msgspec.convert({"name": "a", "model": "local/tiny", **fields}, EndpointSpec)


def facts(weights_mib: int) -> ModelFacts:
    """A model of which nothing is known but the size of its files."""
    return ModelFacts(path="local/tiny", weights=Weights(cut=weights_mib * 2**20))


def refusal(machine: HostFacts, weights: int | None = 10, **fields: Any) -> BadRequest:
    model = facts(weights) if weights is not None else None
    with pytest.raises(BadRequest) as caught:
        check(spec(**fields), machine, model, MARGIN)
    return caught.value


def test_gpus_stay_open_where_there_are_any_and_else_become_none() -> None:
    assert settle(spec(), host(24_000)).gpus is None
    assert settle(spec(), host()).gpus == 0
    assert settle(spec(gpus=0), host(24_000)).gpus == 0


def test_a_machine_whose_gpus_cannot_be_seen_for_a_moment_is_not_one_without() -> None:
    blind = msgspec.structs.replace(host(), device="cuda")
    assert settle(spec(), blind).gpus is None
    check(spec(), blind, facts(1_000_000), MARGIN)
    assert refusal(blind, gpus=1).param == "gpus"


def test_an_ordinary_endpoint_is_accepted() -> None:
    check(spec(gpus=1), host(24_000), facts(15_000), MARGIN)
    check(spec(gpus=0), host(), None, MARGIN)


def test_fewer_workers_at_most_than_at_least_are_refused() -> None:
    assert refusal(host(), gpus=0, min_workers=3, max_workers=2).param == "min_workers"


def test_aliases_must_differ_from_each_other_and_from_the_name() -> None:
    assert refusal(host(), gpus=0, aliases=["b", "b"]).param == "aliases"
    assert refusal(host(), gpus=0, aliases=["a"]).param == "aliases"


def test_an_unknown_engine_flag_is_refused_with_a_near_one() -> None:
    error = refusal(host(), gpus=0, engine_args={"max_num_seq": 1})
    assert "Did you mean" in error.message
    assert "'max-num-seqs'" in error.message


def test_a_flag_with_a_value_of_the_wrong_kind_is_refused() -> None:
    assert "takes a integer" in refusal(host(), gpus=0, engine_args={"max-num-seqs": "many"}).message


def test_more_gpus_than_the_machine_has_are_refused() -> None:
    assert "this machine has no GPU" in refusal(host(), gpus=1).message
    assert "this machine has 1 GPU:" in refusal(host(24_000), gpus=2).message


def test_gpu_memory_without_gpus_is_refused() -> None:
    assert refusal(host(), gpus=0, gpu_memory_gib=1.0).param == "gpu_memory_gib"


def test_more_memory_than_a_card_may_promise_is_refused_with_what_it_may() -> None:
    assert "at most 23488" in refusal(host(24_000), gpus=1, gpu_memory_gib=23.0).message
    check(spec(gpus=1, gpu_memory_gib=23_488 / 1024), host(24_000), None, MARGIN)


def test_of_several_cards_the_smallest_needed_one_decides() -> None:
    check(spec(gpus=1, gpu_memory_gib=30), host(24_000, 48_000), None, MARGIN)
    assert refusal(host(24_000, 48_000), gpus=2, gpu_memory_gib=30.0).param == "gpu_memory_gib"


def test_a_model_that_cannot_fit_is_refused_with_the_numbers() -> None:
    error = refusal(host(24_000), weights=24_000, gpus=1)
    assert (error.param, "24000 MiB" in error.message) == ("gpus", True)
    assert refusal(host(24_000), weights=9_000, gpus=1, gpu_memory_gib=8.0).param == "gpu_memory_gib"
    check(spec(gpus=2), host(24_000, 24_000), facts(40_000), MARGIN)


def test_a_promise_too_small_for_any_model_is_refused_even_while_the_model_is_not_here() -> None:
    """The worker manager would refuse the whole desired set for it, with everybody's workers in it."""
    for size in (0.0001, GPU_OVERHEAD_MIB / 1024):
        assert refusal(host(24_000), weights=None, gpus=1, gpu_memory_gib=size).param == "gpu_memory_gib"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "a\n"},
        {"name": "-a"},
        {"name": "x" * 129},
        {"aliases": ["a\n"]},
        {"model": "tiny"},
        {"model": "local/tiny\n"},
        {"model": "local/.."},
        {"model": "local/.hidden"},
        {"model": "local/_x"},
        {"model": "org/.."},
        {"model": "../tiny"},
        {"model": "local/a/b"},
        {"revision": "-x"},
        {"revision": "main\n"},
        {"min_workers": -1},
        {"max_workers": 0},
        {"per_worker": 0},
        {"gpus": -1},
        {"gpu_memory_gib": 0},
        {"max_model_len": 0},
        {"unknown": 1},
        {"engine": "other"},
    ],
    ids=str,
)
def test_a_value_out_of_its_range_does_not_make_an_endpoint(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        spec(**fields)


@pytest.mark.parametrize("model", ["local/tiny", "local/a.b-c_d", "local/9"])
def test_every_local_model_that_may_be_registered_is_one_the_worker_manager_takes(model: str) -> None:
    assert spec(model=model).model == model
    assert re.search(MODEL_PATH_PATTERN, model)


def test_a_model_that_the_machines_own_memory_cannot_hold_is_refused_with_the_arithmetic() -> None:
    error = refusal(host(), weights=60_000, gpus=0)
    assert error.param == "model"
    assert str(cpu_need(60_000)) in error.message
    assert str(64_000 - HOST_MARGIN_MIB) in error.message
    check(spec(gpus=0), host(), facts(40_000), MARGIN)

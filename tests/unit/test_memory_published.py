"""The memory formulas against what is published of public models (published_models.json names each source)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.memory.config import ModelShape, read_shape
from gateway.memory.estimate import activation_bytes, needs
from gateway.memory.kv import cache_bytes, request_bytes, token_bytes
from gateway.memory.plan import divides
from gateway.memory.serving import Serving
from gateway.memory.weights import Weights, sum_up
from tests.support.model_headers import tensors

GIB = 2**30
MODELS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("published_models.json").read_text())["models"]
FIGURES = [(model, figure) for model in MODELS for figure in model["figures"]]
LOADED_TOLERANCE = 0.015
"""vLLM's own buffers come on top of the weights, and figures are rounded to 0.01 GiB."""
CACHE_TOLERANCE = 0.02


def shape_of(model: dict[str, Any]) -> ModelShape:
    shape = read_shape(model["config"])
    assert shape is not None
    return shape


def serving_of(figure: dict[str, Any]) -> Serving:
    return Serving(
        tensor_parallel=figure.get("tensor_parallel", 1),
        batch_tokens=figure.get("batch_tokens", 2048),
        sequences=figure.get("sequences", 256),
    )


def token_is_as_large_as_published(model: dict[str, Any], figure: dict[str, Any]) -> None:
    assert token_bytes(shape_of(model), serving_of(figure)) == figure["value"]


def request_is_as_large_as_published(model: dict[str, Any], figure: dict[str, Any]) -> None:
    size = request_bytes(shape_of(model), serving_of(figure), figure["tokens"]) / GIB
    assert size == pytest.approx(figure["value"], abs=0.006)


def cache_holds_as_many_tokens_as_published(model: dict[str, Any], figure: dict[str, Any]) -> None:
    shape, serving = shape_of(model), serving_of(figure)
    one = request_bytes(shape, serving, figure["max_model_len"])
    tokens = figure["gib"] * GIB / one * figure["max_model_len"]
    assert tokens == pytest.approx(figure["tokens"], rel=CACHE_TOLERANCE)


def weights_load_as_large_as_published(model: dict[str, Any], figure: dict[str, Any]) -> None:
    shape = shape_of(model)
    if model["config"]["model_type"] == "gpt_oss":
        weights = Weights(cut=model["weights_bytes"])
    else:
        weights = sum_up(tensors(model["config"]), shape, 0)
    loaded = weights.on_each(figure["tensor_parallel"], shape.kv_heads) / GIB
    assert loaded == pytest.approx(figure["value"], rel=figure.get("tolerance", LOADED_TOLERANCE))


def activations_are_estimated_on_the_high_side(model: dict[str, Any], figure: dict[str, Any]) -> None:
    assert figure["value"] <= activation_bytes(shape_of(model), serving_of(figure)) / GIB <= 2 * figure["value"]


def graphs_are_estimated_on_the_high_side(model: dict[str, Any], figure: dict[str, Any]) -> None:
    estimate = needs(Weights(cut=model["weights_bytes"]), shape_of(model), serving_of(figure), None).graphs_mib / 1024
    assert figure["value"] <= estimate <= 2 * figure["value"]


def layers_are_of_the_published_kinds(model: dict[str, Any], figure: dict[str, Any]) -> None:
    assert {group.kind.value: group.count for group in shape_of(model).layers} == figure["value"]


def context_is_as_long_as_published(model: dict[str, Any], figure: dict[str, Any]) -> None:
    assert shape_of(model).longest == figure["value"]


def model_can_be_cut_into(model: dict[str, Any], figure: dict[str, Any]) -> None:
    assert [parts for parts in range(1, 9) if divides(shape_of(model), parts)] == figure["value"]


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "token_bytes": token_is_as_large_as_published,
    "request_gib": request_is_as_large_as_published,
    "cache": cache_holds_as_many_tokens_as_published,
    "loaded_gib": weights_load_as_large_as_published,
    "activations_gib": activations_are_estimated_on_the_high_side,
    "graphs_gib": graphs_are_estimated_on_the_high_side,
    "layers": layers_are_of_the_published_kinds,
    "longest": context_is_as_long_as_published,
    "parts": model_can_be_cut_into,
}


@pytest.mark.parametrize(
    ("model", "figure"), FIGURES, ids=[f"{model['name']}-{figure['kind']}" for model, figure in FIGURES]
)
def test_the_formulas_give_what_is_known_of_a_public_model(model: dict[str, Any], figure: dict[str, Any]) -> None:
    CHECKS[figure["kind"]](model, figure)


COUNTED = [one for one in MODELS if one["weights_bytes"] and one["config"]["model_type"] != "gpt_oss"]


@pytest.mark.parametrize("model", COUNTED, ids=[model["name"] for model in COUNTED])
def test_the_tensors_of_a_configuration_add_up_to_the_index_to_the_byte(model: dict[str, Any]) -> None:
    weights = sum_up(tensors(model["config"]), shape_of(model), 0)
    assert weights.total == model["weights_bytes"]


def test_at_least_ten_models_have_a_published_figure_and_every_figure_a_source() -> None:
    with_one = {model["name"] for model, figure in FIGURES if figure["published"]}
    with_total = {model["name"] for model in MODELS if model["weights_source"].startswith("total_size")}
    assert len(with_one | with_total) >= 10
    assert all(figure["source"] for _, figure in FIGURES)


def test_one_block_more_than_the_requests_need_is_counted() -> None:
    shape = shape_of(MODELS[0])
    assert cache_bytes(shape, Serving(), 4096) - request_bytes(shape, Serving(), 4096) == 16 * 131072

"""What of an endpoint its workers are made of."""

from typing import Any

import pytest

from gateway.endpoints.changes import SERVING_FIELDS, changed_fields, is_served_alike, pinned, served_as
from gateway.endpoints.types import AdapterSource, EndpointSpec
from gateway.prices import Price
from gateway.types import Allowable, Limits

OTHERS = {
    "min_workers": 1,
    "max_workers": 3,
    "per_worker": 5,
    "idle_seconds": 7.0,
    "sleep": "off",
    "sleep_after_seconds": 5.0,
    "priority": 3,
    "aliases": ("b",),
    "adapters": {"c": AdapterSource(model="local/lora")},
    "labels": {"x": "y"},
    "limits": Limits(concurrency=3),
    "price": Price(output=3),
    "allow": (Allowable.MEDIA_URLS,),
}


def spec(**fields: Any) -> EndpointSpec:
    return EndpointSpec(**{"name": "a", "model": "local/tiny", **fields})


def test_every_field_either_makes_the_workers_what_they_are_or_does_not() -> None:
    assert set(EndpointSpec.__struct_fields__) == {"name", *SERVING_FIELDS, *OTHERS}


@pytest.mark.parametrize("field", OTHERS)
def test_these_fields_restart_nothing(field: str) -> None:
    assert is_served_alike(spec(), spec(**{field: OTHERS[field]}))


def test_served_as_before_means_the_workers_and_nothing_else() -> None:
    before, now = spec(gpus=1, engine_args={"seed": 1}), spec(gpus=2, model="local/new", priority=5)
    assert served_as(now, before) == spec(gpus=1, engine_args={"seed": 1}, priority=5)
    assert not is_served_alike(before, now)


def test_what_served_is_remembered_by_its_commit() -> None:
    assert pinned(spec(), "local/tiny").revision is None
    assert pinned(spec(model="o/n"), "hub/o/n/abcdef0").revision == "abcdef0"


def test_a_change_tells_each_field_from_what_to_what() -> None:
    good = pinned(spec(model="o/n"), "hub/o/n/abcdef0")
    changed = spec(model="o/n", max_model_len=100)
    assert changed_fields(good, changed, same_files=True) == {"max_model_len": {"from": None, "to": 100}}
    assert changed_fields(good, spec(model="o/n"), same_files=False) == {"revision": {"from": "abcdef0", "to": None}}

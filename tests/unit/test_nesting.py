"""How deep JSON may be: exact at the limit, whatever else the body holds."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy import nesting
from gateway.proxy.nesting import check_nesting

LIMIT = 6
BRACKETS = "[{" * 200 + '\\"]}'


def depth(value: Any) -> int:
    """By recursion, as one would write it down."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def is_refused(body: bytes) -> bool:
    try:
        check_nesting(body, LIMIT)
    except BadRequest:
        return True
    return False


JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.just(BRACKETS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.booleans(), st.booleans())
def test_exactly_what_is_deeper_is_refused_by_each_way_of_counting(
    value: dict[str, Any],
    large: bool,  # noqa: FBT001 - drawn
    padded: bool,  # noqa: FBT001 - drawn
) -> None:
    if large:
        value = {**value, "text": "x" * (nesting.OPENED_LIMIT + 1)}
    body = json.dumps(value, indent=2 if padded else None).encode()
    assert is_refused(body) == (depth(value) > LIMIT)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":', '{"role": "user", "x": [1, '])
def test_the_limit_is_met_exactly(opening: str) -> None:
    brackets = sum(character in "[{" for character in opening)
    closing = "".join({"[": "]", "{": "}"}[one] for one in reversed(opening) if one in "[{")
    times = 60 // brackets
    body = (opening * times + "1" + closing * times).encode()
    check_nesting(body, times * brackets)
    with pytest.raises(BadRequest):
        check_nesting(body, times * brackets - 1)


def test_no_depth_ends_in_a_recursion() -> None:
    for times in (2_000, nesting.OPENED_LIMIT):
        assert is_refused(b"[" * times + b"]" * times)


def test_more_containers_than_an_engine_should_build_are_refused() -> None:
    with pytest.raises(BadRequest, match=str(nesting.CONTAINERS)):
        check_nesting(b"[" + b"[]," * nesting.CONTAINERS + b"1]", LIMIT)
    # in a text they are none
    check_nesting(msgspec.json.encode({"text": "[{" * nesting.CONTAINERS}), LIMIT)


def test_a_single_array_is_told_from_more() -> None:
    assert not check_nesting(b'{"messages": [{"content": "a"}, {"content": "b"}]}', LIMIT)
    assert check_nesting(b'{"messages": [{"content": [{}]}]}', LIMIT)

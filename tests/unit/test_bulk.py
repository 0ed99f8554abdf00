"""What a large body may be made of."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy import bulk
from gateway.proxy.bulk import TEXTS, VALUES, check_bulk, outside_texts, unescaped

TEXT = st.text(st.sampled_from('a"\\[{,\n'), max_size=30)


def is_refused(body: bytes) -> bool:
    try:
        check_bulk(body)
    except BadRequest:
        return True
    return False


@pytest.mark.parametrize("text", ["", "a", "\\", '"', '\\"', '"\\'])
def test_as_many_texts_as_may_be_are_taken_whatever_they_hold(text: str) -> None:
    assert not is_refused(msgspec.json.encode([text] * TEXTS))


@pytest.mark.parametrize("text", ["", "a", "\\", "\\\\\\", "\n"])
def test_twice_as_many_are_not_however_they_end(text: str) -> None:
    assert is_refused(msgspec.json.encode([text] * (2 * TEXTS + 1)))
    assert is_refused(msgspec.json.encode({"model": "m"})[:-1] + b',"n":1' * (2 * TEXTS) + b"}")


def test_quotes_and_commas_in_one_text_are_no_texts_and_no_values() -> None:
    assert not is_refused(msgspec.json.encode({"prompt": '",' * (VALUES + 1)}))


def test_values_are_counted_exactly() -> None:
    assert not is_refused(b"[" + b"1," * (VALUES - 1) + b"1]")
    assert is_refused(b"[" + b"1," * VALUES + b"1]")
    assert is_refused(b'["a, b",' + b"1," * VALUES + b"1]")


@given(st.lists(TEXT, max_size=8), st.integers(2, 9))
def test_what_is_outside_of_texts_is_found_however_a_body_is_cut(texts: list[str], piece: int) -> None:
    body = msgspec.json.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "SLICE", piece)
        assert outside_texts(body) == b"[" + b"," * (len(texts) - 1) + b"]"
        assert unescaped(body).count(b'"') == 2 * len(texts)


@given(st.binary(max_size=40).map(lambda drawn: drawn.translate(bytes([92, 34] * 128))), st.integers(2, 5))
def test_what_is_no_json_comes_to_an_end_too(body: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "SLICE", piece)
        assert len(unescaped(body)) <= len(body)

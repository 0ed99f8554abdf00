"""Keys as text."""

import base64
import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.access.credentials import (
    ALPHABET,
    KEY_LENGTH,
    base62,
    checksum,
    digest,
    from_headers,
    mint,
    well_formed,
)

Headers = list[tuple[bytes, bytes]]


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


def test_a_key_tells_its_id_and_reads_as_promised() -> None:
    key_id, key = mint()
    assert re.fullmatch(r"hst_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}", key)
    assert key.startswith(f"hst_{key_id}_")
    assert well_formed(key.encode())


def test_no_two_keys_are_alike() -> None:
    assert len({mint()[1] for _ in range(100)}) == 100


@given(st.integers(0, KEY_LENGTH - 1), st.sampled_from(ALPHABET + "-_ é"))
def test_a_key_with_any_one_character_mistyped_is_not_well_formed(place: int, other: str) -> None:
    _, key = mint()
    mistyped = key[:place] + other + key[place + 1 :]
    assert well_formed(mistyped.encode()) == (mistyped == key)


@given(st.integers(0, KEY_LENGTH - 2))
def test_a_key_that_was_not_copied_whole_or_with_two_characters_swapped_is_not_well_formed(place: int) -> None:
    _, key = mint()
    assert not well_formed(key[:place].encode())
    swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    assert well_formed(swapped.encode()) == (swapped == key)


@given(st.text())
def test_a_made_up_text_is_not_well_formed(text: str) -> None:
    assert not well_formed(text.encode())


@given(st.integers(0, 62**6 - 1))
def test_base62_keeps_length_and_order(number: int) -> None:
    text = base62(number, 6)
    assert len(text) == 6
    assert sum(ALPHABET.index(digit) * 62**power for power, digit in enumerate(reversed(text))) == number


def test_the_checksum_is_six_digits_even_of_nothing() -> None:
    assert checksum(b"") == b"000000"
    assert digest(b"x") != digest(b"y")


def test_the_three_forms_of_a_credential_are_found() -> None:
    assert from_headers({b"authorization": b"Bearer hst_a"}) == b"hst_a"
    assert from_headers({b"authorization": b"bearer   hst_a "}) == b"hst_a"
    assert from_headers({b"x-api-key": b" hst_a "}) == b"hst_a"
    assert from_headers({b"authorization": basic("hst_a:")}) == b"hst_a"
    assert from_headers({b"authorization": basic("hst_a:any password")}) == b"hst_a"


def test_authorization_comes_before_x_api_key_unless_it_holds_nothing() -> None:
    key = {b"x-api-key": b"other"}
    assert from_headers(key | {b"authorization": b"Bearer hst_a"}) == b"hst_a"
    assert from_headers(key | {b"authorization": b"Bearer "}) == b"other"
    assert from_headers(key | {b"authorization": b"Digest whatever"}) == b"other"


def test_no_credential_is_none() -> None:
    empty: list[Headers] = [
        [],
        [(b"accept", b"*/*")],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", basic(":password"))],
        [(b"authorization", b"Basic not base64!")],
        [(b"authorization", b"Basic \xff\xfe")],
        [(b"x-api-key", b"  ")],
    ]
    assert [from_headers(dict(headers)) for headers in empty] == [None] * len(empty)


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"host"]), st.binary(max_size=40))))
def test_no_header_whatever_raises(headers: Headers) -> None:
    found = from_headers(dict(headers))
    assert found is None or digest(found)


@given(st.sampled_from([b"Basic ", b"BASIC ", b"Bearer "]), st.binary(max_size=40))
def test_no_value_behind_a_known_scheme_raises(scheme: bytes, value: bytes) -> None:
    found = from_headers({b"authorization": scheme + value})
    assert found is None or digest(found)

"""Multipart forms: the fields that an engine would read, and no way to hide one, or to keep the reader busy."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy.form import HEAD_BYTES, PARTS, fields_of

KIND = b"multipart/form-data; boundary=b"
NAMES = st.text(st.characters(codec="ascii", min_codepoint=32, exclude_characters='"\\'), min_size=1, max_size=20)


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    """A body of parts, each a header and a value with an empty line between."""
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


def field(name: bytes, value: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value


def read(body: bytes, kind: bytes = KIND) -> list[tuple[bytes, bytes]]:
    return [(name, body[start:end]) for name, start, end in fields_of(body, kind)]


@given(st.lists(st.tuples(NAMES, st.text(max_size=50)), max_size=5), st.binary(max_size=200))
def test_what_httpx_writes_is_read(fields: list[tuple[str, str]], file: bytes) -> None:
    request = httpx.Request("POST", "http://h", data=dict(fields), files={"file": ('a"b;é.wav', file)}, headers={})
    found = read(request.read(), request.headers["content-type"].encode())
    assert found == [(name.encode(), value.encode()) for name, value in dict(fields).items()]


def test_values_end_with_the_boundary_and_nothing_else() -> None:
    for value in (b"", b"\r\n", b"a\r\n--bb\r\n", b"--b--", b"\r\n--b\n", b"\x00" * 100):
        assert read(form(field(b"model", value), field(b"n", b"2"))) == [(b"model", value), (b"n", b"2")]


def test_a_field_in_a_file_is_no_field() -> None:
    inside = b"\r\n" + field(b"model", b"theirs") + b"\r\n"
    file = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + inside
    assert read(form(field(b"model", b"mine"), file)) == [(b"model", b"mine")]


def test_what_follows_on_the_end_is_no_part() -> None:
    assert read(form(field(b"model", b"mine")) + form(field(b"model", b"theirs"))) == [(b"model", b"mine")]
    assert read(b"\r\n\r\n" + form(field(b"model", b"mine"))) == [(b"model", b"mine")]
    assert read(b"") == []


@pytest.mark.parametrize(
    "kind",
    [b'multipart/form-data; boundary="b"', b"Multipart/Form-Data ;  charset=utf-8;boundary=b", KIND + b"; x*=utf-8''y"],
)
def test_the_boundary_is_read_in_each_of_its_forms(kind: bytes) -> None:
    assert read(form(field(b"model", b"m")), kind) == [(b"model", b"m")]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (form(field(b"a", b"b")), b"multipart/form-data", "boundary"),
        (form(field(b"a", b"b")), b"multipart/form-data; boundary=", "boundary"),
        (form(field(b"a", b"b")), b"multipart/form-data; boundary=b; boundary=c", "each once"),
        (form(field(b"a", b"b")), b'multipart/form-data; boundary="b', "can't be read"),
        (form(field(b"a", b"b")), b"multipart/form-data; boundary=" + b"b" * 300, "boundary"),
        (form(field(b"a", b"b")), b"multipart/form-data; boundary=c", "begin"),
        (b"preamble\r\n" + form(field(b"a", b"b")), KIND, "begin"),
        (form(field(b"a", b"b"), end=b""), KIND, "not whole"),
        (b"--b\r\nContent-Disposition: form-data; name=a\r\n", KIND, "header"),
        (b"--bX", KIND, "header"),
        (form(b"\r\nvalue"), KIND, "no name"),
        (form(b"X: y\r\n\r\nvalue"), KIND, "no name"),
        (form(b"Content-Disposition: form-data\r\n\r\nvalue"), KIND, "no name"),
        (form(b"Content-Disposition: form-data; name*=utf-8''model\r\n\r\nvalue"), KIND, "no name"),
        (form(b"Content-Disposition: form-data; name=a; name=b\r\n\r\nvalue"), KIND, "each once"),
        (form(b"Content-Disposition: form-data; name=a; Name=b\r\n\r\nvalue"), KIND, "each once"),
        (form(b'Content-Disposition: form-data; name="a"b\r\n\r\nvalue'), KIND, "can't be read"),
        (form(b"Content-Disposition: x; name=a\r\nContent-Disposition: x; name=b\r\n\r\nvalue"), KIND, "no name"),
        (form(b"X: " + b"y" * HEAD_BYTES + b"\r\n" + field(b"a", b"b")), KIND, "16 KiB"),
        (form(*[field(b"a", b"b")] * (PARTS + 1)), KIND, "1000 parts"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(body: bytes, kind: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        fields_of(body, kind)


@pytest.mark.parametrize(
    "piece",
    [
        b'\r\nContent-Disposition: form-data; name="model"',
        b"\r\n--b",
        b"\r\n--b\r\n",
        b"\r\n\r\n",
        b"; a=b",
        b'; a="',
        b"\r\n",
    ],
)
def test_no_form_keeps_its_reader_busy(piece: bytes) -> None:
    """A reader that looks at a megabyte once for each of its lines would not end within the limit of a test."""
    many = piece * (4 * 2**20 // len(piece))
    for body in (b"--b" + many, form(field(b"model", many)), many, form(b"Content-Disposition: form-data" + many)):
        try:
            fields_of(body, KIND)
        except BadRequest:
            continue


@given(st.binary() | st.lists(st.sampled_from([b"--b", b"\r\n", b"--", field(b"a", b""), b"x"])).map(b"".join))
def test_any_body_is_a_form_or_refused(body: bytes) -> None:
    try:
        found = fields_of(body, KIND)
    except BadRequest:
        return
    assert all(0 <= one.start <= one.end <= len(body) for one in found)

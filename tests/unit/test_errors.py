"""Every error of the gateway: a status, a type, a code, and the one shape."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import gateway.app
from gateway.errors import GatewayError, NoWorker

assert gateway.app  # with it every module is imported, and so every subclass is known


def tree(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


KINDS = sorted(set(tree()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_a_type_and_a_code(kind: type[GatewayError]) -> None:
    assert 400 <= kind.status <= 504
    assert kind.status != 422
    assert kind.type.endswith("_error")
    assert kind.code == kind.code.lower()
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_documented_with_its_status_and_its_code(kind: type[GatewayError]) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith(f"| {kind.status} |")]
    assert any(f"`{kind.code}`" in row[2] for row in rows)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_answers_in_the_one_shape(kind: type[GatewayError]) -> None:
    error = kind('what "happened"\n', param="model", retry_after=3)
    expected = {"message": 'what "happened"\n', "type": kind.type, "param": "model", "code": kind.code}
    assert msgspec.json.decode(error.body()) == {"error": expected}
    assert str(error) == error.message
    assert (b"content-type", b"application/json") in error.headers()
    assert (b"retry-after", b"3") in error.headers()


def test_no_error_but_a_bug_of_ours_has_status_500() -> None:
    assert {kind.__name__ for kind in KINDS if kind.status == 500} == {"GatewayError", "InternalError"}


def test_retry_after_is_a_whole_number_of_seconds_and_never_zero() -> None:
    for seconds, header in ((0.01, b"1"), (1.4, b"1"), (29.6, b"30")):
        assert (b"retry-after", header) in NoWorker("wait", retry_after=seconds).headers()
    assert all(name != b"retry-after" for name, _ in NoWorker("wait").headers())

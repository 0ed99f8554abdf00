import math

import pytest

from worker_manager.engines.fingerprint import Fingerprint
from worker_manager.engines.questions import Answer, answer


def mark(first: Answer, second: Answer | None = None) -> Fingerprint:
    return Fingerprint(route="/v1/completions", first=first, second=second if second is not None else first)


def test_the_same_text_fits_and_another_does_not() -> None:
    assert mark(" Rome.").fits(" Rome.")
    assert not mark(" Rome.").fits("!!!!!!")
    assert not mark(" Rome.").fits("")
    assert not mark(" Rome.").fits((1.0,))


def test_where_a_healthy_engine_wavered_only_what_both_answers_share_must_come_again() -> None:
    wavering = mark(" Rome. The", " Rome. And")
    assert wavering.is_usable()
    assert wavering.fits(" Rome. Which")
    assert not wavering.fits(" Romulus")


def test_answers_that_share_nothing_prove_nothing() -> None:
    assert not mark("abc", "xyz").is_usable()
    assert not mark("", "").is_usable()
    assert mark((1.0, 0.0), (1.0, 0.001)).is_usable()
    assert not mark((1.0, 0.0), (0.0, 1.0)).is_usable()


@pytest.mark.parametrize(
    ("later", "fits"), [((0.6, 0.8), True), ((0.61, 0.79), True), ((0.8, 0.6), False), ((1.0,), False)]
)
def test_an_embedding_fits_within_a_twentieth_of_its_length(later: tuple[float, ...], *, fits: bool) -> None:
    assert mark((0.6, 0.8)).fits(later) is fits


def test_answers_are_read_by_their_route() -> None:
    assert answer("/v1/completions", {"choices": [{"text": " Rome"}]}) == " Rome"
    assert answer("/v1/embeddings", {"data": [{"embedding": [1, 2.5]}]}) == (1.0, 2.5)
    assert answer("/pooling", {"data": [{"data": [[1, 2], [3, 4]]}]}) == (1.0, 2.0, 3.0, 4.0)
    assert answer("/classify", {"data": [{"label": "A", "probs": [0.25, 0.75]}]}) == (0.25, 0.75)


@pytest.mark.parametrize(
    "body", [{}, {"data": []}, {"data": [{"embedding": []}]}, {"data": [{"embedding": [math.nan]}]}, [], {"data": "x"}]
)
def test_a_body_of_another_shape_or_without_numbers_is_no_answer(body: object) -> None:
    with pytest.raises(ValueError, match="an answer of"):
        answer("/v1/embeddings", body)

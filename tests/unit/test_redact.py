"""What redaction takes out of captured text, and what it leaves."""

import msgspec
import pytest

from gateway.access.credentials import mint
from gateway.capture.redact import redacted, redacted_json, redacted_stream, redacted_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("write to anna.b+c@mail.example.org now", "write to [email] now"),
        ("4111 1111 1111 1111", "[card]"),
        ("5500-0000-0000-0004.", "[card]."),
        ("378282246310005", "[card]"),
        ("4111 1111 1111 1112 has a wrong digit", "4111 1111 1111 1112 has a wrong digit"),
        ("DE89 3704 0044 0532 0130 00 and more words", "[iban] and more words"),
        ("GB29NWBK60161331926819", "[iban]"),
        ("GB29NWBK60161331926818", "GB29NWBK60161331926818"),
        ("call +49 30 1234567 or (030) 123 45 67", "call [phone] or [phone]"),
        ("call 555-123-4567", "call [phone]"),
        ("0044 20 7946 0958", "[phone]"),
        (
            "pi is 3.14159265358979, in 2026-11-23 18:00, 192.0.2.1",
            "pi is 3.14159265358979, in 2026-11-23 18:00, 192.0.2.1",
        ),
        ("Authorization: Bearer abcdef0123456789", "Authorization: [key]"),
        ("sk-proj-abcdefghijklmnop1234", "[key]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", "[key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[key]"),
        ("data:image/png;base64," + "A" * 100, "[data]"),
        ("bare " + "QUJD" * 200 + "== end", "bare [data] end"),
        ("a" * 500, "a" * 500),
    ],
)
def test_what_is_personal_or_secret_is_taken_out_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_our_own_keys_are_taken_out() -> None:
    assert redacted(f"my key is {mint()[1]}!") == "my key is [key]!"


def test_texts_are_redacted_wherever_they_stand_in_json_and_however_they_are_escaped() -> None:
    body = rb'{"a": [{"b": "4111\u00201111 1111 1111"}], "anna@example.org": 4111111111111111, "n": 12}'
    assert msgspec.json.decode(redacted_json(body)) == {"a": [{"b": "[card]"}], "[email]": "[card]", "n": 12}


def test_texts_that_are_json_themselves_are_redacted_inside() -> None:
    arguments = rb"{\"to\": \"anna\\u0040example.org\", \"n\": [\"4111\\u00201111 1111 1111\"]}"
    body = b'{"tool_calls": [{"function": {"arguments": "' + arguments + b'"}}]}'
    shown = msgspec.json.decode(redacted_json(body))["tool_calls"][0]["function"]["arguments"]
    assert msgspec.json.decode(shown) == {"to": "[email]", "n": ["[card]"]}
    assert redacted_text("[not json] anna@example.org") == "[not json] [email]"
    assert redacted_text("[" * 100_000) == "[" * 100_000
    deep = "[" * 900 + '"anna@example.org"' + "]" * 900
    assert "anna" not in redacted_text(deep)
    streamed = b"".join(
        b"data: "
        + msgspec.json.encode(
            {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}}]}
        )
        + b"\n\n"
        for piece in ('{"to": "anna', "\\u0040exa", 'mple.org"}')
    )
    assert redacted_stream(streamed) == '{"to":"[email]"}'


def test_of_a_body_that_is_cut_only_whole_texts_are_kept() -> None:
    assert redacted_json(b'{"a": "anna@example.org", "b": "4111 1111 11') == "a\n[email]\nb"
    assert redacted_json(b"no json") == ""


def test_a_number_that_comes_in_pieces_is_put_together_first() -> None:
    pieces = ["my card is 4111", " 1111 11", "11 1111", "."]
    chat = b"".join(
        b"data: " + msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": piece}}]}) + b"\n\n"
        for piece in pieces
    )
    assert redacted_stream(b": comment\n\n" + chat + b"data: [DONE]\n\n") == "my card is [card]."
    responses = b"".join(
        b"event: x\ndata: " + msgspec.json.encode({"type": "response.output_text.delta", "delta": piece}) + b"\n\n"
        for piece in pieces
    )
    assert redacted_stream(responses) == "my card is [card]."
    blocks = [{"type": "content_block_delta", "index": 0, "delta": {"text": piece}} for piece in pieces]
    anthropic = b"".join(b"data: " + msgspec.json.encode(block) + b"\n\n" for block in blocks)
    assert redacted_stream(anthropic) == "my card is [card]."

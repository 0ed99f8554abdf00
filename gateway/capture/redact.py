"""What is taken out of captured text: addresses of people, of their money, and keys. Pure.

Numbers count as cards and accounts only if their check digits fit (Luhn; ISO 7064 mod 97 and the country's own rules;
both by python-stdnum): most long numbers are neither. Telephone numbers have no check digits, so what is written like
one is taken out.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from stdnum import iban, luhn

SECRET = re.compile(
    r"hst_[A-Za-z0-9_]{8,}|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[opsur]_[A-Za-z0-9]{20,}"
    r"|\bhf_[A-Za-z0-9]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|\b(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
EMAIL = re.compile(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63})+")
ACCOUNT = re.compile(r"\b[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d)")
PHONE = re.compile(
    r"(?<![\w.])(?:(?:\+|00)[1-9]\d{0,2}(?:[ ./()-]{0,2}\d){6,12}"
    r"|\(?0\d{1,5}\)?[ ./-]\d(?:[ ./-]?\d){4,9}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?!\w)"
)
DATA = re.compile(r"data:[\w/+.;=-]{0,100},[A-Za-z0-9+/=_%-]{64,}|[A-Za-z0-9+/_-]{512,}={0,2}")
"""Media as a `data:` URL, or bare in base64."""
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def redacted(text: str) -> str:
    """The text with a word in brackets for each thing that was taken out."""
    text = DATA.sub("[data]", text)
    text = SECRET.sub("[key]", text)
    text = EMAIL.sub("[email]", text)
    text = ACCOUNT.sub(_account, text)
    text = CARD.sub(lambda found: "[card]" if luhn.is_valid(re.sub(r"\D", "", found[0])) else found[0], text)
    return PHONE.sub("[phone]", text)


def _account(found: re.Match[str]) -> str:
    """An account's number may be followed by words: the longest beginning that is one is taken out."""
    text = found[0]
    for end in range(len(text), 14, -1):
        if text[end - 1].isalnum() and iban.is_valid(text[:end]):
            return "[iban]" + text[end:]
    return text


def redacted_json(body: bytes) -> str:
    """A JSON body with all its texts redacted; of one that is cut or no JSON, the texts that are whole."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "\n".join(redacted(text) for text in _strings(body))
    return msgspec.json.encode(_walked(value)).decode()


def redacted_text(text: str) -> str:
    """The same of a text that may be JSON itself, as the arguments of a tool are: in there texts have escapes."""
    if text[:1] in ("{", "["):
        try:
            return msgspec.json.encode(_walked(msgspec.json.decode(text))).decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # it only looks like it
    return redacted(text)


def _walked(value: Any) -> Any:
    """Bounded in depth by what a request may have, and by the decoder for answers."""
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, dict):
        return {redacted(name): _walked(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_walked(one) for one in value]
    if isinstance(value, int | float) and len(str(value)) > len("123456789012"):
        return redacted(str(value))
    return value


def _strings(body: bytes) -> Iterator[str]:
    for found in STRING.findall(body):
        try:
            yield msgspec.json.decode(found, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


def redacted_stream(body: bytes) -> str:
    """The text that an event stream told, put together before it is redacted: a number may come in pieces."""
    texts: dict[str, list[str]] = {}
    for line in body.splitlines():
        if line.startswith(b"data:"):
            try:
                event = msgspec.json.decode(line[len(b"data:") :])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            for where, text in _told(event):
                texts.setdefault(where, []).append(text)
    return "\n".join(redacted_text("".join(pieces)) for pieces in texts.values())


def _told(event: Any) -> Iterator[tuple[str, str]]:
    """What an event adds to which text; of events that tell all over again nothing."""
    if not isinstance(event, dict):
        return
    pieces: list[tuple[str, Any]] = []
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict):
            pieces += [(f"{choice.get('index')}", choice.get("delta")), (f"{choice.get('index')}", choice)]
    if str(event.get("type", "")).endswith("delta"):
        pieces.append((f"{event.get('output_index')} {event.get('index')}", {"text": event.get("delta")}))
        pieces.append((f"{event.get('index')}", event.get("delta")))
    if "error" in event:
        pieces.append(("error", event["error"]))
    for where, piece in pieces:
        yield from _texts(where, piece)


def _texts(where: str, piece: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(piece, dict):
        return
    for name in ("content", "text", "reasoning", "reasoning_content", "thinking", "partial_json", "message"):
        if isinstance(piece.get(name), str):
            yield f"{where} {name}", piece[name]
    calls = piece.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield f"{where} call {call.get('index')}", function["arguments"]

"""Keys as text: making one, checking its form, finding it in a request's headers. Pure but for the random source.

A key reads `hst_IIIIIIII_` + 43 characters of 32 random bytes in base62 + 6 characters of their CRC32 in base62. The
checksum lets a mistyped or made-up key be refused before any look-up, and lets a leak scanner know a real one.
SHA-256 at rest: a slow hash buys nothing against 256 random bits and would be a lever to exhaust the gateway.
"""

import base64
import hashlib
import secrets
import zlib
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "hst_"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH, SECRET_LENGTH, CHECK_LENGTH = 8, 43, 6
KEY_LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECK_LENGTH


def base62(number: int, length: int) -> str:
    """A number as exactly `length` base62 digits, most significant first."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


PAIRS = tuple(base62(number, 2).encode() for number in range(len(ALPHABET) ** 2))
"""Every two digits: a checksum is taken of each request's key, and three look-ups are cheaper than six divisions."""


def checksum(text: bytes) -> bytes:
    """CRC32 of the text as six base62 digits."""
    high, low = divmod(zlib.crc32(text), 3844)
    return PAIRS[high // 3844] + PAIRS[high % 3844] + PAIRS[low]


def mint(key_id: str = "") -> tuple[str, str]:
    """A new key: its public id (8 characters; a fresh one where none is given) and the whole key."""
    key_id = key_id or base62(int.from_bytes(secrets.token_bytes(6)), ID_LENGTH)
    body = f"{PREFIX}{key_id}_{base62(int.from_bytes(secrets.token_bytes(32)), SECRET_LENGTH)}"
    return key_id, body + checksum(body.encode()).decode()


def well_formed(key: bytes) -> bool:
    """Whether this can be a key of ours at all."""
    return len(key) == KEY_LENGTH and key[-CHECK_LENGTH:] == checksum(key[:-CHECK_LENGTH])


def id_of(key: bytes) -> str:
    """The public id in a well-formed key."""
    return key[len(PREFIX) : len(PREFIX) + ID_LENGTH].decode("latin-1")


def looks_like_token(credential: bytes) -> bool:
    """Whether this may be a JWT: three parts, the first of them JSON in base64."""
    return credential[:2] == b"ey" and credential.count(b".") == 2  # noqa: PLR2004 - between three


def digest(key: bytes) -> bytes:
    """The 32 bytes that stand for a key at rest and in memory."""
    return hashlib.sha256(key).digest()


class Credential(NamedTuple):
    """What a request signs in with, and all that follows from that alone: heads that come again need it only once."""

    text: bytes
    digest: bytes
    key_id: str
    """The public id in it; empty where it is not well-formed, and then it is looked up nowhere."""


def credential_of(headers: Mapping[bytes, bytes]) -> Credential | None:
    """The credential of a request; None where it has none."""
    text = from_headers(headers)
    return None if text is None else Credential(text, digest(text), id_of(text) if well_formed(text) else "")


def from_headers(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The credential of a request: Bearer, `x-api-key` (Anthropic clients) or Basic user name (LLM Engine clients)."""
    value = headers.get(b"authorization")
    if value is not None:
        found = value[7:].strip() if value[:7] == b"Bearer " else _from_authorization(value)
        if found:
            return found
    value = headers.get(b"x-api-key")
    return value.strip() or None if value is not None else None


def _from_authorization(value: bytes) -> bytes | None:
    kind, _, rest = value.partition(b" ")
    kind, rest = kind.lower(), rest.strip()
    if kind == b"bearer":
        return rest or None
    if kind != b"basic":
        return None
    try:
        user, _, _ = base64.b64decode(rest, validate=True).partition(b":")
    except ValueError:  # binascii.Error is one
        return None
    return user or None

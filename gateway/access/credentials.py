"""Keys as text: making one, checking its form, finding it in a request's headers. Pure but for the random source.

A key reads `hst_IIIIIIII_` + 43 characters of 32 random bytes in base62 + 6 characters of their CRC32 in base62. The
checksum lets a mistyped or made-up key be refused before any look-up, and lets a leak scanner know a real one.
SHA-256 at rest: a slow hash buys nothing against 256 random bits and would be a lever to exhaust the gateway.
"""

import base64
import hashlib
import secrets
import zlib
from collections.abc import Iterable

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


def checksum(text: str) -> str:
    """CRC32 of the text as six base62 digits."""
    return base62(zlib.crc32(text.encode()), CHECK_LENGTH)


def mint() -> tuple[str, str]:
    """A new key: its public id (8 characters) and the whole key."""
    key_id = base62(int.from_bytes(secrets.token_bytes(6)), ID_LENGTH)
    body = f"{PREFIX}{key_id}_{base62(int.from_bytes(secrets.token_bytes(32)), SECRET_LENGTH)}"
    return key_id, body + checksum(body)


def well_formed(key: str) -> bool:
    """Whether this can be a key of ours at all."""
    return len(key) == KEY_LENGTH and key.isascii() and key[-CHECK_LENGTH:] == checksum(key[:-CHECK_LENGTH])


def digest(key: str) -> bytes:
    """The 32 bytes that stand for a key at rest and in memory."""
    return hashlib.sha256(key.encode()).digest()


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The credential of a request: Bearer, `x-api-key` (Anthropic clients) or Basic user name (LLM Engine clients)."""
    fallback: str | None = None
    for name, value in headers:
        if name == b"authorization":
            found = _from_authorization(value.decode("latin-1"))
            if found:
                return found
        elif name == b"x-api-key":
            fallback = value.decode("latin-1").strip() or None
    return fallback


def _from_authorization(value: str) -> str | None:
    kind, _, rest = value.partition(" ")
    rest = rest.strip()
    if kind.lower() == "bearer":
        return rest or None
    if kind.lower() != "basic":
        return None
    try:
        user, _, _ = base64.b64decode(rest, validate=True).decode("latin-1").partition(":")
    except ValueError:  # binascii.Error is one, and so is what is not even ASCII
        return None
    return user or None

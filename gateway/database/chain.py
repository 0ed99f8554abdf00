"""The audit trail's records and the chain that binds each to the one before it. Pure.

    hash(n) = SHA-256(hash(n - 1) + JSON array of the record's other fields, in the order of the table's columns)

and hash(0) is 32 zero bytes. Whoever changes, removes or inserts a record breaks the chain from there on; whoever can
write the file could compute it anew, and is found out by any older hash that was kept elsewhere: the log has each one.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.actor import Actor
from gateway.logs import clean

START = bytes(32)
COLUMNS = 'seq, at, who, subject, address, action, target, "from", "to", request_id, hash'
VALUE_LIMIT = 16 * 1024
"""Bytes of JSON that a record's `from` or `to` may take; of a larger one its hash is kept."""

encode = msgspec.json.Encoder(order="sorted").encode


class Record(NamedTuple):
    """One row of the table `audit`, in its order."""

    seq: int
    at: float
    """Unix seconds."""
    who: str
    subject: str
    address: str
    action: str
    target: str
    before: str | None
    """JSON object of what was; null: there was nothing."""
    after: str | None
    """JSON object of what is; null: there is nothing any more."""
    request_id: str
    hash: bytes


class Change(NamedTuple):
    """What is done to what. Neither side may hold a secret; both are objects of fields."""

    action: str
    """What it is about, and what is done: `endpoint.create`."""
    target: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def linked(seq: int, previous: bytes, at: float, actor: Actor, change: Change) -> Record:
    """A change as the record that follows the one with the hash `previous`. Of a change, only fields that differ."""
    before, after = differing(change.before, change.after)
    record = Record(
        seq,
        round(at, 3),
        actor.who,
        actor.subject,
        actor.address,
        change.action,
        change.target,
        _text(before),
        _text(after),
        actor.request_id,
        b"",
    )
    return record._replace(hash=link(previous, record))


def link(previous: bytes, record: Record) -> bytes:
    """The hash that this record must have."""
    return hashlib.sha256(previous + msgspec.json.encode(record[:-1])).digest()


def differing(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Both without the fields in which they agree; one alone stays whole."""
    if before is None or after is None:
        return before, after
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {name: before[name] for name in names if name in before}, {
        name: after[name] for name in names if name in after
    }


def _text(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    text = encode(_cleaned(msgspec.to_builtins(value)))
    if len(text) > VALUE_LIMIT:
        text = encode({"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()})
    return text.decode()


def _cleaned(value: Any) -> Any:
    """The same without what looks like a credential: a fence behind the rule that nobody records one."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {name: _cleaned(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(one) for one in value]
    return value

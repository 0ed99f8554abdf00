"""Keys as their owners describe them and as they are kept. Times are Unix seconds."""

from typing import Annotated, Literal, NamedTuple

import msgspec

from gateway.types import Budget, Limits, Principal, Priority, Scope

PRIORITIES: dict[str, Priority] = {level.name.lower(): level for level in Priority}


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `POST /api/keys` takes and `PATCH /api/keys/{id}` changes."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    endpoints: frozenset[Annotated[str, msgspec.Meta(max_length=128)]] = frozenset({"*"})
    expires_at: float | None = None
    """None: never."""
    priority: Literal["interactive", "batch"] = "interactive"
    """The best its requests can have: those of a key for batch work wait behind everybody's interactive ones."""
    limits: Limits | None = None
    budget: Budget | None = None


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table `keys`."""

    id: str
    spec: KeySpec
    digest: bytes
    created_at: float
    previous_digest: bytes | None = None
    """Of the key that this one took the place of."""
    previous_until: float | None = None
    """Until when that one opens as well."""
    last_used_at: float | None = None
    """Some seconds behind."""

    def principal(self) -> Principal:
        """Who a caller with this key is."""
        spec = self.spec
        return Principal(self.id, spec.name, spec.scopes, spec.endpoints, spec.expires_at, PRIORITIES[spec.priority])


class AccessEvent(NamedTuple):
    """Something that an audit wants to know: a sign-in that failed, or a change of a key."""

    what: Literal["sign_in_failed", "key_created", "key_changed", "key_rotated", "key_revoked"]
    key_id: str = ""
    """Whose key it is about; for a failed sign-in the id that the credential bears, which anybody can write."""
    reason: str = ""
    """Why a sign-in failed: `missing`, `malformed`, `unknown`, `expired`, `token`."""
    before: KeySpec | None = None
    after: KeySpec | None = None

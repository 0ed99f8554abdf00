"""`/api/keys`: make, list and revoke keys."""

import time
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post

from gateway.access.keyring import Keyring
from gateway.access.store import StoredKey
from gateway.errors import BadRequest
from gateway.http import needs, read
from gateway.types import Scope


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /api/keys` takes."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    endpoints: frozenset[Annotated[str, msgspec.Meta(max_length=128)]] = frozenset({"*"})
    expires_at: float | None = None
    """Unix time, seconds; null: never."""


class KeyView(msgspec.Struct, frozen=True):
    """A key as it may be shown."""

    id: str
    name: str
    scopes: list[Scope]
    endpoints: list[str]
    created_at: float
    expires_at: float | None
    key: str | None = None
    """The key itself, in the answer that made it and never again."""


def view(stored: StoredKey, key: str | None = None) -> KeyView:
    """A stored key without its digest."""
    return KeyView(
        stored.id,
        stored.name,
        sorted(stored.scopes),
        sorted(stored.endpoints),
        stored.created_at,
        stored.expires_at,
        key,
    )


class KeyRoutes(Controller):
    """Keys, for admins."""

    path = "/api/keys"
    guards = [needs(Scope.ADMIN)]

    @post()
    async def create(self, request: Request[Any, Any, Any], keyring: Keyring) -> KeyView:
        """Make a key; the answer is the only one that shows it."""
        new = await read(request, NewKey)
        if new.expires_at is not None and new.expires_at <= time.time():
            raise BadRequest(
                "expires_at lies in the past: give Unix seconds in the future, or null", param="expires_at"
            )
        if not new.scopes:
            raise BadRequest("scopes is empty: such a key could do nothing", param="scopes")
        stored, key = await keyring.create(new.name, new.scopes, new.endpoints, new.expires_at)
        return view(stored, key)

    @get()
    async def all(self, keyring: Keyring) -> list[KeyView]:
        """Every key but the admin key of the environment."""
        return [view(stored) for stored in await keyring.all()]

    @delete("/{key_id:str}")
    async def revoke(self, key_id: str, keyring: Keyring) -> None:
        """Delete a key; it is refused from the next request on."""
        await keyring.revoke(key_id)

"""`/api/keys`: make, list, change, rotate and revoke keys."""

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, patch, post

from gateway.access.accounts import Accounts
from gateway.access.budget import Account
from gateway.access.gate import Gate
from gateway.access.keyring import Keyring
from gateway.access.types import KeySpec, StoredKey
from gateway.http import needs, read
from gateway.prices import units
from gateway.types import Scope

OVERLAP_SECONDS = 24 * 3600.0
"""How long the key before a rotation still opens where nothing is said: time to bring the new one everywhere."""
LONGEST_OVERLAP_SECONDS = 90 * 24 * 3600.0


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /api/keys/{id}/rotate` takes; an empty body is one too."""

    overlap_seconds: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_OVERLAP_SECONDS)] = OVERLAP_SECONDS


class SpentView(msgspec.Struct, frozen=True):
    """What is spent of a budget."""

    tokens: int
    reserved: int
    """By requests under way."""
    resets_at: float | None
    """Unix time, seconds; None: never."""
    cost: float
    """In units."""
    reserved_cost: float


def _spent(account: Account, now: float) -> SpentView:
    spent, resets_at = account.spent(now), account.resets_at(now)
    return SpentView(spent.tokens, account.reserved, resets_at, units(spent.cost), units(account.reserved_cost))


def view(stored: StoredKey, gate: Gate, key: str | None = None) -> dict[str, Any]:
    """A stored key as it may be shown: without its digest; with the key itself in the answer that made it."""
    account = gate.account(stored.id)
    now = gate.now().unix
    spec = stored.spec
    return {
        "id": stored.id,
        **msgspec.to_builtins(spec),
        "scopes": sorted(spec.scopes),
        "endpoints": sorted(spec.endpoints),
        "created_at": stored.created_at,
        "last_used_at": stored.last_used_at,
        "previous_until": stored.previous_until,
        "spent": _spent(account, now) if account is not None else None,
        "key": key,
    }


def _shown(made: tuple[StoredKey, str], gate: Gate) -> dict[str, Any]:
    stored, key = made
    return view(stored, gate, key)


class KeyRoutes(Controller):
    """Keys, for admins."""

    path = "/api/keys"
    guards = [needs(Scope.ADMIN)]

    @post()
    async def create(self, request: Request[Any, Any, Any], keyring: Keyring, gate: Gate) -> dict[str, Any]:
        """Make a key; the answer is the only one that shows it."""
        return _shown(await keyring.create(await read(request, KeySpec)), gate)

    @get()
    async def all(self, keyring: Keyring, gate: Gate) -> list[dict[str, Any]]:
        """Every key but the admin key of the environment."""
        return [view(stored, gate) for stored in keyring.all()]

    @get("/{key_id:str}")
    async def one(self, key_id: str, keyring: Keyring, gate: Gate) -> dict[str, Any]:
        """One key."""
        return view(keyring.get(key_id), gate)

    @patch("/{key_id:str}")
    async def change(
        self, key_id: str, request: Request[Any, Any, Any], keyring: Keyring, gate: Gate
    ) -> dict[str, Any]:
        """Change some fields; the next request feels it."""
        return view(await keyring.change(key_id, await read(request, dict[str, Any])), gate)

    @post("/{key_id:str}/rotate")
    async def rotate(
        self, key_id: str, request: Request[Any, Any, Any], keyring: Keyring, gate: Gate
    ) -> dict[str, Any]:
        """Give a key a new secret; the answer is the only one that shows it. The old one opens for a while still."""
        rotation = await read(request, Rotation) if await request.body() else Rotation()
        return _shown(await keyring.rotate(key_id, rotation.overlap_seconds), gate)

    @delete("/{key_id:str}/spent", status_code=200)
    async def reset(self, key_id: str, accounts: Accounts, gate: Gate) -> dict[str, Any]:
        """Let a key's budget begin anew."""
        return view(await accounts.reset(key_id), gate)

    @delete("/{key_id:str}")
    async def revoke(self, key_id: str, keyring: Keyring) -> None:
        """Delete a key; it is refused from the next request on."""
        await keyring.revoke(key_id)

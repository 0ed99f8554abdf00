"""`/api/captures`: what keys have sent, where that was asked for; for admins."""

from typing import Any

import msgspec
from litestar import Controller, Request, delete, get, put

from gateway.access.keyring import Keyring
from gateway.capture.recorder import Captures
from gateway.capture.store import StoredCapture
from gateway.http import needs, number, parameters
from gateway.types import Scope

PAGE, PAGE_LIMIT = 20, 200
PARAMETERS = ("key", "before", "limit")


class CapturePage(msgspec.Struct, frozen=True):
    """A page of what was captured, the newest first."""

    keys: list[str]
    """Ids of the keys whose requests are captured."""
    captures: list[StoredCapture]
    next: int | None
    """What `before` has to be for the next page; null: there is none."""


class CaptureRoutes(Controller):
    """Off for every key until an admin turns it on."""

    path = "/api/captures"
    guards = [needs(Scope.ADMIN)]

    @get()
    async def page(self, request: Request[Any, Any, Any], captures: Captures) -> CapturePage:
        """A page of what was captured."""
        given = parameters(request, PARAMETERS)
        most = min(number(given, "limit") or PAGE, PAGE_LIMIT)
        found = await captures.page(given.get("key"), number(given, "before"), most + 1)
        return CapturePage(sorted(captures.keys), found[:most], found[most - 1].id if len(found) > most else None)

    @put("/{key_id:str}", status_code=204)
    async def turn_on(self, key_id: str, keyring: Keyring, captures: Captures) -> None:
        """Capture what this key sends and gets, from its next request on."""
        keyring.get(key_id)
        await captures.turn_on(key_id)

    @delete("/{key_id:str}", status_code=200)
    async def turn_off(self, key_id: str, captures: Captures) -> dict[str, int]:
        """Capture no more of this key, and delete all that was; also of a key that is gone."""
        return {"deleted": await captures.turn_off(key_id)}

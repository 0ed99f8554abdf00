"""Endpoints in the database: the spec as JSON, so that a new field needs no migration."""

from typing import Any, TypeVar

import msgspec

from gateway.database.chain import Change
from gateway.database.connection import Database, IntegrityError
from gateway.endpoints.types import Endpoint, EndpointSpec, RolledBack
from gateway.errors import Conflict

Past = TypeVar("Past", EndpointSpec, RolledBack)


class EndpointStore:
    """Reads and writes the table `endpoints`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[list[Endpoint], dict[str, str]]:
        """Every endpoint that can be read, and the name and fault of each that can't: a bad row harms only itself."""
        rows = await self._database.rows(
            "SELECT name, spec, created_at, updated_at, changed_at, good, rolled_back FROM endpoints ORDER BY name"
        )
        good: list[Endpoint] = []
        bad: dict[str, str] = {}
        for name, *row in rows:
            try:
                good.append(_endpoint(*row))
            except msgspec.MsgspecError as problem:
                bad[str(name)] = self._database.unreadable["endpoints", str(name)] = str(problem)
        return good, bad

    async def discard(self, name: str) -> bool:
        """Delete an endpoint that can't be read; whether there was one."""
        return await self._database.discard("endpoints", "name", name)

    async def add(self, endpoint: Endpoint) -> None:
        """Write a new endpoint. Raises Conflict if the name is taken."""
        try:
            async with self._database.transaction() as write:
                await write.execute(
                    "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, ?, ?, ?)",
                    (
                        endpoint.spec.name,
                        msgspec.json.encode(endpoint.spec).decode(),
                        endpoint.created_at,
                        endpoint.updated_at,
                    ),
                )
                await write.audit(Change("endpoint.create", endpoint.spec.name, None, shown(endpoint.spec)))
        except IntegrityError:
            raise Conflict(
                f"There is an endpoint '{endpoint.spec.name}' already: PATCH it, or choose another name"
            ) from None

    async def update(self, endpoint: Endpoint, change: Change | None) -> None:
        """Replace all that may change of an endpoint, and record what somebody changed."""
        async with self._database.transaction() as write:
            await write.execute(
                "UPDATE endpoints SET spec = ?, updated_at = ?, changed_at = ?, good = ?, rolled_back = ? "
                "WHERE name = ?",
                (
                    msgspec.json.encode(endpoint.spec).decode(),
                    endpoint.updated_at,
                    endpoint.changed_at,
                    _text(endpoint.good),
                    _text(endpoint.rolled_back),
                    endpoint.spec.name,
                ),
            )
            if change is not None:
                await write.audit(change)

    async def remove(self, spec: EndpointSpec) -> None:
        """Delete an endpoint; one that is not there is no error."""
        async with self._database.transaction() as write:
            if await write.execute("DELETE FROM endpoints WHERE name = ?", (spec.name,)) > 0:
                await write.audit(Change("endpoint.delete", spec.name, shown(spec), None))


def _endpoint(
    spec: str, created_at: float, updated_at: float, changed_at: float | None, good: str | None, rolled_back: str | None
) -> Endpoint:
    """A row as an endpoint. Raises msgspec.MsgspecError where its spec can't be read; its past alone is let go."""
    return Endpoint(
        spec=msgspec.json.decode(spec, type=EndpointSpec),
        created_at=created_at,
        updated_at=updated_at,
        changed_at=changed_at if changed_at is not None else updated_at,
        good=_past(good, EndpointSpec),
        rolled_back=_past(rolled_back, RolledBack),
    )


def _past(text: str | None, kind: type[Past]) -> Past | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        return None


def _text(value: Any) -> str | None:
    return msgspec.json.encode(value).decode() if value is not None else None


def shown(spec: EndpointSpec) -> dict[str, Any]:
    """A spec as the audit trail has it."""
    fields: dict[str, Any] = msgspec.to_builtins(spec)
    return fields

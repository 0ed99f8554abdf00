"""Endpoints in the database: the spec as JSON, so that a new field needs no migration."""

import msgspec

from gateway.database.connection import Database, IntegrityError
from gateway.endpoints.types import Endpoint, EndpointSpec
from gateway.errors import Conflict


class EndpointStore:
    """Reads and writes the table `endpoints`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[list[Endpoint], dict[str, str]]:
        """Every endpoint that can be read, and the name and fault of each that can't: a bad row harms only itself."""
        rows = await self._database.rows("SELECT name, spec, created_at, updated_at FROM endpoints ORDER BY name")
        good: list[Endpoint] = []
        bad: dict[str, str] = {}
        for name, spec, created_at, updated_at in rows:
            try:
                decoded = msgspec.json.decode(spec, type=EndpointSpec)
            except msgspec.MsgspecError as problem:
                bad[str(name)] = str(problem)
            else:
                good.append(Endpoint(spec=decoded, created_at=created_at, updated_at=updated_at))
        return good, bad

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
        except IntegrityError:
            raise Conflict(
                f"There is an endpoint '{endpoint.spec.name}' already: PATCH it, or choose another name"
            ) from None

    async def update(self, endpoint: Endpoint) -> None:
        """Replace the spec of an endpoint."""
        async with self._database.transaction() as write:
            await write.execute(
                "UPDATE endpoints SET spec = ?, updated_at = ? WHERE name = ?",
                (msgspec.json.encode(endpoint.spec).decode(), endpoint.updated_at, endpoint.spec.name),
            )

    async def remove(self, name: str) -> None:
        """Delete an endpoint; one that is not there is no error."""
        async with self._database.transaction() as write:
            await write.execute("DELETE FROM endpoints WHERE name = ?", (name,))

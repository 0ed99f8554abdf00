"""A client whose answer is kept as it passes: only for keys that have their requests captured."""

from collections.abc import Callable

from gateway.proxy.call import KEPT, Client


class Tap:
    """Stands in for the client; everything goes on to it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.method, self.path, self.query, self.familiar = client.method, client.path, client.query, client.familiar
        self.kept = bytearray()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As the client says."""
        return self._client.headers

    @property
    def started(self) -> bool:
        """As the client says."""
        return self._client.started

    @property
    def ended(self) -> bool:
        """As the client says."""
        return self._client.ended

    @property
    def gone(self) -> bool:
        """As the client says."""
        return self._client.gone

    @property
    def blocked(self) -> bool:
        """As the client says."""
        return self._client.blocked

    @property
    def peer(self) -> str | None:
        """As the client says."""
        return self._client.peer

    @property
    def when_free(self) -> Callable[[], None] | None:
        """As the client has it."""
        return self._client.when_free

    @when_free.setter
    def when_free(self, call: Callable[[], None] | None) -> None:
        self._client.when_free = call

    async def body(self, limit: int, seconds: float) -> bytes:
        """The client's."""
        return await self._client.body(limit, seconds)

    def start(
        self, status: int, headers: list[tuple[bytes, bytes]], lines: bytes = b"", *, sized: bool = False
    ) -> None:
        """To the client."""
        self._client.start(status, headers, lines, sized=sized)

    def flush(self) -> None:
        """To the client."""
        self._client.flush()

    def write(self, data: bytes) -> None:
        """Keep it, and to the client."""
        self._keep(data)
        self._client.write(data)

    def end(self, data: bytes = b"") -> None:
        """Keep it, and to the client."""
        self._keep(data)
        self._client.end(data)

    def _keep(self, data: bytes) -> None:
        if len(self.kept) < KEPT:
            self.kept += data[: KEPT - len(self.kept)]

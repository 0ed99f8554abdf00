"""An exchange as an ASGI application sees it: everything but inference goes this way, to Litestar."""

import re
from typing import Any

from gateway.http11.exchange import Exchange

UNSAFE_NAME = re.compile(b'[\x00-\x1f\x7f()<>@,;:\\[\\]={} \t\\\\"]')
UNSAFE_VALUE = re.compile(b"[\x00-\x08\x0a-\x1f\x7f]")


class AsgiExchange:
    """`scope`, `receive` and `send` for one exchange."""

    def __init__(self, exchange: Exchange, state: dict[str, Any], transport: Any) -> None:
        self._exchange = exchange
        self._left: int | None = None
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if exchange.old else "1.1",
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "method": exchange.method,
            "root_path": "",
            "path": exchange.path,
            "raw_path": exchange.raw_path,
            "query_string": exchange.query,
            "headers": exchange.headers,
            "state": state.copy(),
        }
        self._told_all = False

    async def receive(self) -> dict[str, Any]:
        """The next piece of the request, and after its end the end of the connection."""
        exchange = self._exchange
        if self._told_all:
            while not (exchange.gone or exchange.ended):
                await exchange.news()
            return {"type": "http.disconnect"}
        body = await exchange.piece()
        if exchange.gone or exchange.ended:
            return {"type": "http.disconnect"}
        self._told_all = exchange.whole
        return {"type": "http.request", "body": body, "more_body": not exchange.whole}

    async def send(self, message: dict[str, Any]) -> None:
        """Send a part of the answer; waits while the client's socket is full."""
        exchange = self._exchange
        while exchange.blocked and not exchange.gone:
            exchange.when_free = exchange.wake
            await exchange.news()
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            return
        if not exchange.started or exchange.ended:
            raise RuntimeError(f"The application sent {message['type']} out of turn")
        data, more = message.get("body", b""), message.get("more_body", False)
        if self._left is not None and exchange.method != "HEAD":
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("The application's body does not have the length that it said")
        if more:
            exchange.write(data)
        else:
            exchange.end(data)
            exchange.wake()  # who waits for the client to hang up need not wait any longer

    def _start(self, status: int, headers: Any) -> None:
        if self._exchange.started:
            raise RuntimeError("The application began its answer twice")
        lower = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        for name, value in lower:
            if UNSAFE_NAME.search(name) or UNSAFE_VALUE.search(value):
                raise RuntimeError(f"The application sent the unusable header {name!r}")
            if name == b"content-length":
                self._left = int(value)
        self._exchange.start(status, lower)


def _address(address: Any) -> tuple[str, int] | None:
    """Host and port out of what the socket says; a Unix socket has none."""
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None

"""The server's protocol behind TLS in a test's own loop, on real sockets: all that is between uvicorn and a handler."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import uvloop

from gateway.certificate import Certificate
from gateway.http11.door import Hall, MistakenConnection
from gateway.http11.exchange import Exchange
from gateway.http11.secure import SecureConnection
from tests.support.certificates import Authority
from tests.support.waiting import wait_until_async

SECONDS = 60.0

Handle = Callable[[Exchange], Awaitable[None]]
HallT = TypeVar("HallT", bound=Hall)


class Served(Generic[HallT]):
    """The server, and what its connections share."""

    hall: HallT
    port: int
    total_requests = 0

    def __init__(self) -> None:
        self.authority = Authority()
        self.connections: set[SecureConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def serving(
    folder: Path, handle: Handle, hall: type[HallT], handshake_seconds: float = SECONDS, **limits: Any
) -> AsyncIterator[Served[HallT]]:
    """A server whose every request goes to `handle`; nothing of a connection may be left in the end."""
    served: Served[HallT] = Served()
    kind = type("Limited", (SecureConnection,), {"direct": staticmethod(lambda _path: handle), **limits})
    needs: Any = (SimpleNamespace(loaded=True, loaded_app=None), served, {})
    served.hall = hall(
        Certificate(*served.authority.sign(folder)).context,
        lambda: kind(*needs),
        lambda: MistakenConnection(*needs),
        handshake_seconds=handshake_seconds,
        shutdown_seconds=SECONDS,
    )
    server = await asyncio.get_running_loop().create_server(served.hall.door, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
        await wait_until_async(lambda: not served.connections, "no connection is left", seconds=SECONDS)
        await wait_until_async(lambda: not served.hall._tasks, "no handshake is left", seconds=SECONDS)
    finally:
        server.close()


async def ok(exchange: Exchange) -> None:
    """A short answer."""
    exchange.start(200, [(b"content-length", b"2")])
    exchange.end(b"ok")


def run(scenario: Callable[[], Any]) -> None:
    """On the loop that the product runs on; what it would only log is a failure here."""
    problems: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, problem: problems.append(problem))
        await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watched())
    assert not problems

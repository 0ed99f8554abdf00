"""The mock engine: vLLM's routes at the least cost a Python process can have, for it shares a core with the load.

`python -m lib.bench.engine serve MODEL --uds=PATH` as the worker manager starts it, or `--port=N` for other gateways.
Streams of one rate take their steps together, on multiples of the step's length of the machine's monotonic clock, as
vLLM's own batches do; a rate of 0 means as fast as they are taken. Each event is a chunk and a write of its own.
"""

import argparse
import asyncio
import json
import math
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import httptools
import uvloop

from lib.bench import wire

HEAD = b"HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CHUNKS = tuple(wire.chunk(event) for event in wire.EVENTS)
BACKLOG = 4096


class Pacer:
    """The steps of all streams of one rate (per second; 0: whenever the loop comes round)."""

    def __init__(self, rate: int) -> None:
        self.streams: dict[Stream, None] = {}
        self._period = 1 / rate if rate else 0.0
        self._next = 0.0
        self._running = False

    def add(self, stream: "Stream") -> None:
        """From the next step on."""
        self.streams[stream] = None
        self.wake()

    def wake(self) -> None:
        """Go on, if steps had stopped for want of streams that can take any."""
        if not self._running:
            self._running = True
            self._next = math.ceil(time.monotonic() / self._period) * self._period if self._period else 0.0
            self._later()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        if self._period:
            loop.call_later(max(0.0, self._next - time.monotonic()), self._step)
        else:
            loop.call_soon(self._step)

    def _step(self) -> None:
        steps = 1
        if self._period:
            # a step that comes late makes up for those it missed: the offered load stays what was ordered
            steps = max(1, int((time.monotonic() - self._next) / self._period) + 1)
            self._next += steps * self._period
        moved = False
        for stream in list(self.streams):
            moved = stream.step(steps) or moved
        self._running = bool(self.streams) and (moved or bool(self._period))
        if self._running:
            self._later()


class Stream:
    """One answer in events, up to its last."""

    def __init__(self, connection: "Conversation", events: int, pacer: Pacer, *, usage: bool) -> None:
        self._connection = connection
        self._events = events
        self._pacer = pacer
        self._usage = usage
        self._sent = 0
        self._due = 0

    def step(self, steps: int) -> bool:
        """So many more events are due; write what the socket takes. Whether anything was written."""
        self._due = min(self._due + steps, self._events)
        before = self._sent
        write = self._connection.write
        while self._sent < self._due and not self._connection.paused:
            write(CHUNKS[self._sent % wire.DISTINCT])
            self._sent += 1
        if self._sent == self._events:
            self.stop()
            for event in wire.tail(usage=self._usage):
                write(wire.chunk(event))
            write(b"0\r\n\r\n")
            self._connection.stream = None
        return self._sent > before

    def resume(self) -> None:
        """The socket takes more."""
        self.step(0)
        self._pacer.wake()

    def stop(self) -> None:
        """No more steps."""
        self._pacer.streams.pop(self, None)


class Conversation(asyncio.Protocol):
    """One connection of a gateway."""

    def __init__(self, answers: dict[bytes, bytes], pacers: dict[int, Pacer]) -> None:
        self._answers = answers
        self._pacers = pacers
        self.paused = False
        self.stream: Stream | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self.write: Callable[[bytes], None] = transport.write  # type: ignore[attr-defined]  # a stream's transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, data: bytes) -> None:
        self._body = self._body + data if self._body else data

    def on_message_complete(self) -> None:
        events, rate = wire.order(self._body) if self._body else (0, 0)
        if not events:
            self.write(self._answers.get(self._url, NOT_FOUND))
            return
        pacer = self._pacers.setdefault(rate, Pacer(rate))
        self.write(STREAM_HEAD)
        usage = wire.WANTS_USAGE.search(self._body) is not None
        self.stream = Stream(self, events, pacer, usage=usage)
        pacer.add(self.stream)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.stream is not None:
            self.stream.resume()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        if self.stream is not None:
            self.stream.stop()
            self.stream = None


def answers(names: list[str]) -> dict[bytes, bytes]:
    """Whole responses by path."""
    models = {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "bench"} for name in names]}
    bodies = {
        "/health": b"",
        "/v1/models": json.dumps(models).encode(),
        "/v1/chat/completions": wire.ANSWER,
        "/v1/completions": wire.ANSWER,
        # what routers ask an engine about itself before they use it
        "/get_server_info": b"{}",
        "/server_info": b"{}",
        "/get_model_info": json.dumps({"model_path": wire.MODEL, "is_generation": True}).encode(),
        "/model_info": json.dumps({"model_path": wire.MODEL, "is_generation": True}).encode(),
        "/version": b'{"version":"0.32.0"}',
    }
    return {path.encode(): HEAD % (len(body), body) for path, body in bodies.items()}


async def serve(options: argparse.Namespace) -> None:
    """Until TERM."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    known = answers([*(options.served_model_name or []), wire.MODEL])
    pacers: dict[int, Pacer] = {}

    def conversation() -> Conversation:
        return Conversation(known, pacers)

    if options.uds:
        await loop.create_unix_server(conversation, options.uds, backlog=BACKLOG)
    else:
        await loop.create_server(conversation, "127.0.0.1", options.port, backlog=BACKLOG)
    await stopping.wait()


def main() -> None:
    """Read vLLM's command line as far as it matters, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("serve",))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--served-model-name", nargs="*")
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=8000)
    options, _ = parser.parse_known_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()

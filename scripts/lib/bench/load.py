"""The load: raw connections, one thread, every byte of every answer checked. `python -m lib.bench.load`.

Reads one Job as JSON from stdin, writes one result as JSON to stdout. It also reads the CPU clocks of the processes it
is told to watch, at the very moments between which it counts.
"""

import asyncio
import json
import math
import resource
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import httptools
import uvloop

from lib.bench import cpu, wire
from lib.bench.figures import percentile
from lib.bench.job import Job

OK = 200
OPENING = 50
"""Connections that are opened at once; more would overrun the listen queues of some servers."""
SAMPLED = 8
"""Of so many streams one has the delay of its chunks taken."""
DISTINCT_REQUESTS = 64
TRUSTING = ssl._create_unverified_context()  # noqa: S323, SLF001 - the certificate of the target was made a moment ago


class Clocks:
    """CPU time of the watched processes since the last look."""

    def __init__(self, watch: dict[str, list[int]]) -> None:
        self._watch = watch
        self._last = self._look()
        self._at = time.perf_counter()

    def _look(self) -> dict[str, float]:
        found = {name: cpu.total_seconds(pids) for name, pids in self._watch.items()}
        return found | {"load": time.process_time()}

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds that passed, and CPU seconds by name."""
        now, at = self._look(), time.perf_counter()
        passed, used = at - self._at, {name: now[name] - self._last[name] for name in now}
        self._last, self._at = now, at
        return passed, used


class Tally:
    """What all connections count together."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.open = True
        self.answers = 0
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.delays: list[float] = []
        self.event_bytes = 0
        self.begun = 0
        self.whole = 0
        self.errors: Counter[str] = Counter()
        self.changed = asyncio.Event()

    def forget(self) -> None:
        """The warm-up is over: counting begins. What was wrong stays wrong."""
        self.answers = self.event_bytes = 0
        self.latencies.clear()
        self.delays.clear()
        if not self.job.events:
            self.first_bytes.clear()


class Client(asyncio.Protocol):
    """One connection: a request, its answer, and the next request for as long as the tally is open."""

    def __init__(self, tally: Tally, number: int) -> None:
        self._tally = tally
        self.number = number
        self._asked = 0.0
        self._first = False
        self.asking = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._requests = [b""]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def ask(self, request: bytes, asked: float | None = None) -> None:
        """Send a request; its time counts from `asked`, else from now."""
        self._asked = time.perf_counter() if asked is None else asked
        self._first = True
        self.asking = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.fail("the answer is not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.asking:
            self.fail(f"connection lost ({type(exc).__name__ if exc else 'closed'})")

    def fail(self, why: str) -> None:
        """Count an error; this connection is of no more use."""
        self.asking = False
        self._tally.errors[why] += 1
        self._tally.changed.set()
        self._transport.abort()

    def close(self) -> None:
        """Hang up, between answers or in the middle of one."""
        self.asking = False
        self._transport.abort()


AnyClient = TypeVar("AnyClient", bound=Client)


class Asker(Client):
    """Asks for JSON, again and again."""

    def __init__(self, tally: Tally, number: int, requests: list[bytes]) -> None:
        super().__init__(tally, number)
        self._requests = requests
        self._body = b""
        self._answered = False
        self.next: asyncio.Future[None] | None = None

    def on_body(self, data: bytes) -> None:
        if self._first:
            self._first = False
            self._tally.first_bytes.append(time.perf_counter() - self._asked)
        self._body = self._body + data if self._body else data

    def on_message_complete(self) -> None:
        tally = self._tally
        if self._parser.get_status_code() != OK:
            self.fail(f"status {self._parser.get_status_code()}: {self._body[:120].decode(errors='replace')}")
            return
        if tally.job.strict and self._body != wire.ANSWER:
            self.fail("another answer than the engine gave")
            return
        self._body = b""
        tally.answers += 1
        if not self._answered:
            self._answered = True
            tally.begun += 1
            tally.changed.set()
        tally.latencies.append(time.perf_counter() - self._asked)
        self.asking = False
        if self.next is not None:
            if not self.next.done():
                self.next.set_result(None)
        elif tally.open:
            self.number += 1
            self.ask(self._requests[self.number % len(self._requests)])

    def fail(self, why: str) -> None:
        super().fail(why)
        if self.next is not None and not self.next.done():
            self.next.set_result(None)


class Listener(Client):
    """Asks for one stream and checks it to its last byte."""

    def __init__(self, tally: Tally, number: int) -> None:
        super().__init__(tally, number)
        job = tally.job
        self._left = job.events * wire.EVENT_BYTES
        self._position = 0
        self._tail = b"".join(wire.tail(usage=job.usage))
        self._rest = b""
        self._carry = b""
        self._grid = 0.0
        self._period = 1 / job.rate if job.rate else 0.0
        self._sampled = number % SAMPLED == 0 and self._period > 0
        self.over = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._sampled and self._grid and self._left > 0:
            received = (self._tally.job.events * wire.EVENT_BYTES - self._left) // wire.EVENT_BYTES
            delay = time.monotonic() - self._grid - (received - 1) * self._period
            if delay < 0:  # the first event, which the grid was taken from, came more than a step late
                late = math.ceil(-delay / self._period) * self._period
                self._grid -= late
                delay += late
            self._tally.delays.append(delay)

    def on_body(self, data: bytes) -> None:
        if self._first:
            self._first = False
            self._tally.first_bytes.append(time.perf_counter() - self._asked)
            self._tally.begun += 1
            self._tally.changed.set()
            if self._period:  # the engine's steps lie on multiples of the period, see engine.Pacer
                self._grid = time.monotonic() // self._period * self._period
        if not self._tally.job.strict:
            self._count(data)
            return
        size = min(len(data), self._left)
        if size:
            piece = data if size == len(data) else data[:size]
            if not wire.CYCLE_TWICE.startswith(piece, self._position):
                self._compare(piece)
            self._position = (self._position + size) % len(wire.CYCLE)
            self._left -= size
            self._tally.event_bytes += size
        if size < len(data):
            self._rest += data[size:]

    def _compare(self, piece: bytes) -> None:
        """The slow way, for a piece longer than a cycle; errors are told at the end of the stream."""
        cycles = wire.CYCLE * (len(piece) // len(wire.CYCLE) + 2)
        if not cycles.startswith(piece, self._position):
            self._rest += b"?"

    def _count(self, data: bytes) -> None:
        """Of a gateway that rebuilds events, only the tokens are counted."""
        data = self._carry + data.replace(b'": "', b'":"')
        tokens = data.count(wire.TOKEN)
        self._left -= tokens * wire.EVENT_BYTES
        self._tally.event_bytes += tokens * wire.EVENT_BYTES
        self._carry = data[-len(wire.TOKEN) + 1 :]
        if b"[DONE]" in data:
            self._rest = self._tail

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != OK:
            self.fail(f"status {status}: {self._rest[:120].decode(errors='replace')}")
        elif self._left != 0:
            self.fail("events are missing" if self._left > 0 else "events too many")
        elif self._rest != self._tail:
            self.fail("another stream than the engine sent")
        else:
            self.asking = False
            self._tally.whole += 1
        self.over = True
        self._tally.changed.set()

    def fail(self, why: str) -> None:
        self.over = True
        super().fail(why)


async def connect(tally: Tally, client: Client) -> bool:
    """Connect within the job's patience; a failure is counted."""
    job, loop = tally.job, asyncio.get_running_loop()
    try:
        async with asyncio.timeout(job.patience):
            await loop.create_connection(lambda: client, job.host, job.port, ssl=TRUSTING if job.tls else None)
    except (OSError, TimeoutError) as error:
        tally.errors[f"connecting: {type(error).__name__}"] += 1
        return False
    return True


async def connect_all(tally: Tally, clients: Sequence[AnyClient]) -> list[AnyClient]:
    """Connect some at a time; those that are there."""
    there: list[AnyClient] = []
    for begin in range(0, len(clients), OPENING):
        some = clients[begin : begin + OPENING]
        connected = await asyncio.gather(*(connect(tally, client) for client in some))
        there += [client for client, success in zip(some, connected, strict=True) if success]
    return there


async def ask_again_and_again(job: Job, tally: Tally) -> dict[str, Any]:
    """JSON requests in a closed loop on `connections` connections, or each on a new one."""
    requests = [
        wire.request(job.address, job.key, prompt_bytes=job.prompt_bytes, salt=n, tools=job.tools)
        for n in range(DISTINCT_REQUESTS)
    ]
    clients = [Asker(tally, number, requests) for number in range(job.connections)]
    tasks = []
    if job.fresh:
        tasks = [asyncio.create_task(churn(tally, number, requests)) for number in range(job.connections)]
    else:
        for client in await connect_all(tally, clients):
            client.ask(requests[client.number % len(requests)])
        # a loaded server takes its time to accept the last of many connections; that is no request's latency
        await until(tally, lambda: tally.begun + tally.errors.total() >= len(clients), job.patience)
    await asyncio.sleep(job.warm)
    clocks = Clocks(job.watch)
    tally.forget()
    await asyncio.sleep(job.seconds)
    seconds, used = clocks.lap()
    result = {"seconds": seconds, "cpu": used, "count": tally.answers, "memory_mb": memory(job)}
    tally.open = False
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    for client in clients:
        if client.asking:
            client.close()
    return result | {"latency_ms": spread(tally.latencies)}


async def churn(tally: Tally, number: int, requests: list[bytes]) -> None:
    """A new connection for each request."""
    while tally.open:
        number += 1
        client = Asker(tally, number, requests)
        client.next = asyncio.get_running_loop().create_future()
        asked = time.perf_counter()
        if not await connect(tally, client):
            await asyncio.sleep(0.01)
            continue
        client.ask(requests[number % len(requests)], asked)
        await client.next
        client.close()


async def listen(job: Job, tally: Tally) -> dict[str, Any]:
    """Open all streams, count while all of them run, then see each to its end."""
    memory_before = memory(job)
    clients = [Listener(tally, number) for number in range(job.connections)]
    for begin in range(0, len(clients), OPENING):
        some = clients[begin : begin + OPENING]
        connected = await asyncio.gather(*(connect(tally, client) for client in some))
        for client, there in zip(some, connected, strict=True):
            client.over = not there
            if there:
                client.ask(wire.request(
                    job.address, job.key, events=job.events, rate=job.rate, prompt_bytes=job.prompt_bytes,
                    salt=client.number, usage=job.usage,
                ))  # fmt: skip
    await until(tally, lambda: tally.begun + tally.errors.total() >= len(clients), job.patience)
    await asyncio.sleep(job.warm)
    clocks = Clocks(job.watch)
    tally.forget()
    await asyncio.sleep(job.seconds)
    seconds, used = clocks.lap()
    result = {
        "seconds": seconds,
        "cpu": used,
        "count": tally.event_bytes / wire.EVENT_BYTES,
        "memory_mb": memory(job),
        "memory_before_mb": memory_before,
        "open_to_the_last": sum(not client.over for client in clients),
        "latency_ms": spread(tally.delays),
    }
    await until(tally, lambda: all(client.over for client in clients), job.patience_at_end)
    unfinished = sum(not client.over for client in clients)
    for client in clients:
        if client.asking:
            client.close()
    if unfinished and job.rate:
        tally.errors["a stream that was not over in time"] += unfinished
    return result | {"whole": tally.whole, "streams": len(clients), "ordered": job.rate * len(clients)}


async def until(tally: Tally, reached: Any, patience: float) -> None:
    """Wait for a condition of the tally, but not for ever."""
    try:
        async with asyncio.timeout(patience):
            while not reached():
                tally.changed.clear()
                await tally.changed.wait()
    except TimeoutError:
        return


def memory(job: Job) -> float:
    """Resident memory of the gateway."""
    return cpu.resident_mb(job.watch.get("gateway", []))


def spread(values: list[float]) -> dict[str, float]:
    """Percentiles in ms of values in seconds."""
    return {f"p{part}": percentile(values, part) * 1000 for part in (50, 99)}


async def run(job: Job) -> dict[str, Any]:
    """One job to its result."""
    tally = Tally(job)
    result = await (listen(job, tally) if job.events else ask_again_and_again(job, tally))
    return result | {"first_byte_ms": spread(tally.first_bytes), "errors": dict(tally.errors)}


def main() -> None:
    """Stdin to stdout."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    job = Job(**json.load(sys.stdin))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(run(job)), sys.stdout)


if __name__ == "__main__":
    main()

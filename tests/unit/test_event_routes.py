"""The stream of events, without its connection: what a listener is sent, and when."""

import asyncio
import contextlib

import pytest

from gateway.events import Events, Kind
from gateway.machine import event_routes
from gateway.machine.event_routes import HEARTBEAT, Wanted


async def test_a_listener_for_whom_nothing_of_all_that_happens_is_hears_heartbeats_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_routes, "HEARTBEAT_SECONDS", 0.05)
    events = Events()

    async def happen() -> None:
        while True:
            events.publish(Kind.WORKER, "b", state="loading")
            await asyncio.sleep(0.001)

    busy = asyncio.create_task(happen())
    stream = event_routes._stream(events, Wanted(frozenset(Kind), "a"), None, lambda: None)
    try:
        async with asyncio.timeout(20):
            assert (await anext(stream)).startswith(b"retry: ")
            assert [await anext(stream) for _ in range(3)] == [HEARTBEAT] * 3
    finally:
        await stream.aclose()
        busy.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await busy
    assert events.listeners == 0

"""A stream whose request waits: its client gets its headers after a grace, and then comments, instead of silence."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gateway.proxy.call import Call

STREAM_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), *STREAM_HEADERS]

T = TypeVar("T")


async def with_heartbeats(
    call: Call,
    coming: Coroutine[Any, Any, T],
    beat: Callable[[], bytes],
    *,
    undo: Callable[[T], object],
    grace: float,
    pause: float,
) -> T:
    """What a stream waits for, with a comment after `grace` seconds and then one every `pause` seconds.

    `undo`: gives back what came in the very moment in which the client left. Raises what the waiting raises.
    """
    waiting = asyncio.ensure_future(coming)
    try:
        seconds = pause if call.client.started else grace
        while not (await asyncio.wait({waiting}, timeout=seconds))[0]:
            if not call.client.started:
                call.start(200, EVENTS)
            if not call.client.blocked:
                call.client.write(beat())
            seconds = pause
        return waiting.result()
    except asyncio.CancelledError:
        waiting.cancel()
        await asyncio.wait({waiting})
        if not waiting.cancelled() and waiting.exception() is None:
            undo(waiting.result())
        raise

"""Docker's event feed, brought from a thread of its own into the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import requests
import structlog
from docker.errors import DockerException

from worker_manager import policy
from worker_manager.launchers.base import UnitEvent
from worker_manager.launchers.docker_client import connect

SUBSCRIBE_SECONDS = 10
EVENT_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
WATCHED = ("die", "oom", "destroy", "start", "stop", "kill")

logger = structlog.get_logger()


class Feed:
    """Docker's events in a thread of their own, brought into the event loop."""

    def __init__(self, docker_host: str, instance: str) -> None:
        self._docker_host = docker_host
        self._label = f"{policy.LABEL_INSTANCE}={instance}"
        self._closed = threading.Event()
        self._stream: Any = None

    async def events(self) -> AsyncIterator[UnitEvent]:
        """Never ends by itself; after each cut comes one event without an id."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[UnitEvent] = asyncio.Queue()

        def put(event: UnitEvent) -> None:
            if not self._closed.is_set():
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(queue.put_nowait, event)

        threading.Thread(target=self._follow, args=(put,), name="docker-events", daemon=True).start()
        while True:
            yield await queue.get()

    def close(self) -> None:
        """End the thread as soon as its read returns."""
        self._closed.set()
        if self._stream is not None:
            with contextlib.suppress(OSError, DockerException):
                self._stream.close()

    def _follow(self, put: Callable[[UnitEvent], None]) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                failures = self._read_once(put, failures)
            except (DockerException, requests.RequestException, OSError, ValueError, AttributeError) as error:
                # AttributeError: urllib3's answer to a stream that another thread closed
                logger.debug("event_feed_cut", cause=str(error))
            put(UnitEvent(id="", what="feed cut"))
            self._closed.wait(EVENT_BACKOFF_SECONDS[min(failures, len(EVENT_BACKOFF_SECONDS) - 1)])
            failures += 1

    def _read_once(self, put: Callable[[UnitEvent], None], failures: int) -> int:
        """Read one subscription to its end; the count of failures starts anew once it stands."""
        with contextlib.closing(connect(self._docker_host, SUBSCRIBE_SECONDS)) as client:
            self._stream = client.events(decode=True, filters={"type": "container", "label": [self._label]})
            put(UnitEvent(id="", what="subscribed"))
            for event in self._stream:
                failures = 0
                what = str(event.get("Action", ""))
                if what.split(":", maxsplit=1)[0] in WATCHED:
                    attributes = event.get("Actor", {}).get("Attributes", {})
                    put(UnitEvent(id=str(attributes.get(policy.LABEL_ID, "")), what=what))
        return failures

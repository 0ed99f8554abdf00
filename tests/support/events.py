"""Clients of `/api/events`."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.support.hostler import Hostler, bearer

SECONDS = 30.0
"""For an event to come."""
ALL = "00000000-0"
"""As `last`: no event of this life, so all that are kept come, behind one that says some may be missed."""


class Listener:
    """One open stream of events."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.last = ""

    def next(self) -> dict[str, Any]:
        """The next event, with its kind."""
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            if not line and "event" in fields:
                break
            if not line:
                fields = {}
        self.last = fields.get("id", self.last)
        return {"kind": fields["event"], **json.loads(fields["data"])}

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The next event that has all of these."""
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            event = self.next()
            if wanted.items() <= event.items():
                return event
        raise AssertionError(f"no event with {wanted}")


@contextlib.contextmanager
def listening(hostler: Hostler, key: str | None = None, last: str = "", **query: str) -> Iterator[Listener]:
    """Listen from now on, or behind the event `last`; raises where no stream of events is the answer."""
    headers = bearer(key or hostler.key) | ({"last-event-id": last} if last else {})
    with httpx.stream(
        "GET", f"{hostler.address}/api/events", headers=headers, params=query, timeout=SECONDS
    ) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Listener(response)

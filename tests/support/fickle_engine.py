"""Stands in for an engine that closes idle connections early, at the worst moments it can find."""

import asyncio
import random
import re
from collections import Counter
from enum import Enum, auto

from tests.support.raw_server import read_call

ANSWER_BODY = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}]}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER_BODY) + ANSWER_BODY
)
REQUEST_ID = re.compile(rb"\r\nx-request-id: (\S+)\r\n")
IDLE_SECONDS = 0.02
"""The longest time after which an idle connection is closed."""


class Moment(Enum):
    """When a connection is closed that has answered a request."""

    AT_ONCE = auto()
    SOON = auto()
    """While it idles, or as the next request is on its way: whichever comes first in so short a time."""
    AT_FIRST_BYTES = auto()
    """When the next request has begun to arrive; its bytes are never read."""
    IN_HEADER = auto()
    """When a part of the next request's header was read."""
    IN_BODY = auto()
    """When all but the end of the next request's body was read."""
    NEVER = auto()


class FickleEngine:
    """A script for `raw_server`: the first request of every connection is answered, and then it may be closed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - the same moments in every run
        self.answered: Counter[bytes] = Counter()
        """Requests that were read whole and answered, by their id."""
        self.closed: Counter[Moment] = Counter()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_call(reader, writer)
            found = REQUEST_ID.search(request)
            assert found is not None, request
            self.answered[found.group(1)] += 1
            writer.write(ANSWER)
            moment = self._chance.choice(list(Moment))
            if moment is not Moment.NEVER:
                await self._wait_for(moment, reader)
                self.closed[moment] += 1
                return

    async def _wait_for(self, moment: Moment, reader: asyncio.StreamReader) -> None:
        if moment is Moment.SOON:
            await asyncio.sleep(self._chance.random() * IDLE_SECONDS)
        elif moment is Moment.AT_FIRST_BYTES:
            await reader.readexactly(1)
        elif moment is Moment.IN_HEADER:
            await reader.readexactly(self._chance.randrange(2, 60))
        elif moment is Moment.IN_BODY:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.rpartition(b"content-length: ")[2])
            await reader.readexactly(length - 1)

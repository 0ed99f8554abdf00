"""Callers that ask one endpoint one thing after the other, whatever is done to it meanwhile."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai

from tests.support.hostler import Hostler
from tests.support.waiting import wait_until_async

CALLERS = 4
"""Of each kind: streams, and JSON."""
SECONDS = 60.0


class SteadyLoad:
    """Callers that take note of which worker answers; each answer must be whole: so many tokens."""

    def __init__(self, hostler: Hostler, model: str, tokens: int) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=f"{hostler.address}/v1", api_key=hostler.key, max_retries=0, timeout=SECONDS
        )
        self._model = model
        self._tokens = tokens
        self._stop = False
        self.workers: list[str] = []
        """Of each answer, in the order of their ends; empty where a stream had to wait for one."""
        self.phase = 0
        """Counted up by a test that wants to tell requests from earlier ones."""
        self.workers_of: dict[int, set[str]] = defaultdict(set)
        """By the phase in which the request began."""

    def _note(self, phase: int, worker: str) -> None:
        self.workers.append(worker)
        self.workers_of[phase].add(worker)

    async def _stream(self) -> None:
        while not self._stop:
            phase = self.phase
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._model,
                messages=[{"role": "user", "content": "stream"}],
                stream=True,
                max_tokens=self._tokens,
            )
            answer = raw.parse()
            pieces = [chunk.choices[0].delta.content async for chunk in answer if chunk.choices]
            assert sum(bool(piece) for piece in pieces) == self._tokens
            self._note(phase, raw.headers.get("x-hostler-worker", ""))

    async def _json(self) -> None:
        while not self._stop:
            phase = self.phase
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._model, messages=[{"role": "user", "content": "json"}], max_tokens=self._tokens
            )
            usage = raw.parse().usage
            assert usage is not None
            assert usage.completion_tokens == self._tokens
            self._note(phase, raw.headers["x-hostler-worker"])

    async def goes_on(self) -> None:
        """Return once everybody has asked twice more and been answered."""
        least = len(self.workers) + 4 * CALLERS
        await wait_until_async(lambda: len(self.workers) >= least, "the load goes on", seconds=SECONDS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SteadyLoad"]:
        """Raise the first error of any caller at the end of the block."""
        async with self._client, asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._stream())
                group.create_task(self._json())
            yield self
            self._stop = True

"""Clients that ask over HTTP, each at its time, and what they got."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from tests.support.hostler import bearer
from tests.trial.answers import LEFT, Judgement, Reply, body, judge
from tests.trial.traffic import Request

BEYOND_QUEUE_SECONDS = 60.0
"""A client's patience beyond the longest wait that the gateway promises."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request and its end; Unix seconds."""

    request: Request
    judgement: Judgement
    status: int
    began: float
    ended: float
    wait: float | None
    """Seconds for a worker, as far as the client can tell; None where it got none."""
    worker: str


class Clients:
    """All clients of a trial."""

    def __init__(self, address: str, key: str, seeds: Mapping[str, int], queue_seconds: float) -> None:
        self.asked: list[Asked] = []
        self.open = 0
        self._seeds = seeds
        limit = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        patience = httpx.Timeout(queue_seconds + BEYOND_QUEUE_SECONDS, connect=10.0)
        self._client = httpx.AsyncClient(base_url=address, headers=bearer(key), timeout=patience, limits=limit)

    async def close(self) -> None:
        """End them."""
        await self._client.aclose()

    async def replay(self, requests: Sequence[Request]) -> None:
        """Send each at its time; returns when the last one has its end."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(max(0.0, began + request.at - time.monotonic()))
                group.create_task(self.ask(request))

    async def ask(self, request: Request) -> Asked:
        """Send one and judge its answer."""
        began = time.time()
        self.open += 1
        try:
            async with asyncio.timeout(request.leaves_after):
                reply, wait = await self._ask(request, began)
            judgement = judge(request, reply, self._seeds[request.model])
        except TimeoutError:
            reply, wait, judgement = Reply(headers={}), None, Judgement(LEFT)
        finally:
            self.open -= 1
        asked = Asked(
            request=request,
            judgement=judgement,
            status=reply.status,
            began=began,
            ended=time.time(),
            wait=wait,
            worker=reply.headers.get("x-hostler-worker", ""),
        )
        self.asked.append(asked)
        return asked

    async def _ask(self, request: Request, began: float) -> tuple[Reply, float | None]:
        headers = {"x-hostler-priority": "batch"} if request.batch else {}
        if request.patience is not None:
            headers["x-hostler-timeout"] = str(request.patience)
        status, told, text, wait = 0, httpx.Headers(), b"", None
        try:
            async with self._client.stream("POST", request.route, json=body(request), headers=headers) as answer:
                status, told = answer.status_code, answer.headers
                async for piece in answer.aiter_raw():
                    text += piece
                    if wait is None and status == 200:
                        wait = _wait(request, told, text, time.time() - began)
        except httpx.HTTPError as error:
            return Reply(status=status, headers=told, body=text, trouble=f"{error!r} after {text[-200:]!r}"), wait
        return Reply(status=status, headers=told, body=text), wait


def _wait(request: Request, headers: httpx.Headers, text: bytes, seconds: float) -> float | None:
    """A stream's headers may be out long before it has a worker: then its first event tells."""
    if not request.stream or not text.startswith(b":"):
        return int(headers.get("x-hostler-queue-ms", 0)) / 1000
    return seconds if b"\n\ndata: " in text else None

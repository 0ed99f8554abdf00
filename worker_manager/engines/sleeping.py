"""What is said to an engine that falls asleep or wakes. Every call is bounded by its client's limit.

The steps themselves are `sleep_rules.dialect`'s, keyed by the engine's version. A status of 200 proves nothing here:
vLLM gives it while its engine dies. What counts is what is asked afterwards.
"""

from typing import Any

import httpx

from worker_manager.contract import Residency
from worker_manager.engines import engine_metrics, sleep_rules
from worker_manager.engines.engine_metrics import Load
from worker_manager.engines.fingerprint import TEXT, TOKENS, Fingerprint
from worker_manager.engines.questions import Answer, answer, question
from worker_manager.engines.readiness import is_asleep


class SleepError(Exception):
    """The engine did not do what it was told; the message says what it did instead."""


async def version(client: httpx.AsyncClient) -> str:
    """The engine's own version. Raises httpx.HTTPError, ValueError."""
    return str((await client.get("/version")).raise_for_status().json()["version"])


async def load(client: httpx.AsyncClient) -> Load:
    """Its figures. Raises httpx.HTTPError."""
    return engine_metrics.read((await client.get("/metrics")).raise_for_status().text)


async def fall_asleep(client: httpx.AsyncClient, engine_version: str, level: Residency) -> None:
    """Returns once it says that it sleeps. Raises SleepError, httpx.HTTPError, ValueError."""
    await _steps(client, sleep_rules.dialect(engine_version).sleep[level])
    if not await is_asleep(client):
        raise SleepError("the engine was told to sleep and says that it does not")


async def wake(client: httpx.AsyncClient, engine_version: str, level: Residency) -> None:
    """Returns once it says that it is awake. Raises SleepError, httpx.HTTPError, ValueError."""
    await _steps(client, sleep_rules.dialect(engine_version).wake[level])
    if await is_asleep(client):
        raise SleepError("the engine was told to wake and says that it sleeps")


async def ask(client: httpx.AsyncClient, served_name: str, route: str) -> Answer:
    """Its answer to the fixed question. Raises SleepError, httpx.HTTPError, ValueError."""
    body: dict[str, Any] = question(route, served_name, TEXT, TOKENS)
    reply = await client.post(route, json=body)
    if reply.status_code != httpx.codes.OK:
        raise SleepError(f"{route} answers {reply.status_code}")
    return answer(route, reply.json())


async def take_fingerprint(client: httpx.AsyncClient, served_name: str, route: str) -> Fingerprint:
    """Two answers of an engine that is well. Raises as `ask`."""
    first = await ask(client, served_name, route)
    return Fingerprint(route=route, first=first, second=await ask(client, served_name, route))


async def _steps(client: httpx.AsyncClient, calls: tuple[sleep_rules.Call, ...]) -> None:
    for call in calls:
        reply = await client.post(call.path, params=call.query, json=call.body)
        if not reply.is_success:
            raise SleepError(f"{call.path} answers {reply.status_code}: {reply.text[:200]}")

"""What is killed from outside comes back, finds what it had, and nobody else notices."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell, milliseconds
from tests.support.compose import ComposeStack, compose_stack, docker
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(180)

STREAMS = 20
TOKENS = 300
SLOW = Simulation(tokens_per_second=20)
"""A stream of TOKENS takes 15 s: the manager is killed and back meanwhile."""
NOTICE_SECONDS = 1.0
BACK_SECONDS = 10.0


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    with compose_stack(HOSTLER_STOP_SECONDS="5") as found:
        for name in ("one", "two"):
            found.endpoint(name, SLOW)
        yield found


def identities(stack: ComposeStack) -> dict[str, tuple[str, str]]:
    """Container and time of its start, of each engine."""
    return {worker: (found["Id"], found["State"]["StartedAt"]) for worker, found in stack.project.engines().items()}


def nothing_is_left_over(stack: ComposeStack) -> None:
    """Neither orphans nor conflicts of names."""
    stack.wait_for_agreement()
    assert stack.project.faults() == []


def adoptions(stack: ComposeStack) -> int:
    return stack.project.logs("worker_manager").count('"worker_adopted"')


class Stream:
    """A streaming chat completion, read in the background."""

    def __init__(self, client: openai.AsyncOpenAI, model: str) -> None:
        self.pieces = 0
        self.tokens: int | None = None
        self.reason: str | None = None
        self.task = asyncio.create_task(self._read(client, model))

    async def _read(self, client: openai.AsyncOpenAI, model: str) -> None:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "a long story"}],
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            self.pieces += 1
            self.tokens = chunk.usage.completion_tokens if chunk.usage else self.tokens
            for choice in chunk.choices:
                self.reason = choice.finish_reason or self.reason


async def test_a_killed_manager_breaks_no_stream_and_adopts_every_engine_on_its_return(stack: ComposeStack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, max_retries=0) as client:
        streams = [Stream(client, name) for name in ("one", "two") for _ in range(STREAMS // 2)]
        await wait_until_async(lambda: all(stream.pieces > 2 for stream in streams), "all streams flow", seconds=60)
        before = await asyncio.to_thread(identities, stack)
        adopted = await asyncio.to_thread(adoptions, stack)
        await asyncio.to_thread(stack.project.kill, "worker_manager")
        answer = await client.completions.create(model="one", prompt="while it is away", max_tokens=2)
        assert answer.choices[0].text
        await asyncio.to_thread(stack.project.bring_back, "worker_manager")

        async def all_adopted() -> bool:
            return await asyncio.to_thread(adoptions, stack) >= adopted + len(before)

        back: bool = await wait_until_async(all_adopted, "every engine is adopted", seconds=30, interval=0.1)
        assert back
        assert not any(stream.task.done() for stream in streams), "all were open until the manager was back"
        async with asyncio.timeout(60):
            await asyncio.gather(*(stream.task for stream in streams))
    assert [(stream.tokens, stream.reason) for stream in streams] == [(TOKENS, "length")] * STREAMS
    assert await asyncio.to_thread(identities, stack) == before
    await asyncio.to_thread(nothing_is_left_over, stack)


def test_a_manager_whose_process_dies_is_restarted_and_obeys_again(stack: ComposeStack) -> None:
    stack.endpoint("brief")
    assert stack.ask("brief", max_tokens=2).status_code == 200
    adopted, before = adoptions(stack), identities(stack)
    stack.project.crash("worker_manager", "worker_manager")
    wait_until(lambda: adoptions(stack) >= adopted + len(before), "every engine is adopted", seconds=30, interval=0.1)
    assert identities(stack) == before
    assert stack.client.delete("/api/endpoints/brief").status_code == 204
    wait_until(
        lambda: not [worker for worker in identities(stack) if worker.startswith("brief-")],
        "the engine of the deleted endpoint is gone",
        seconds=30,
        interval=0.1,
    )
    nothing_is_left_over(stack)


def test_a_killed_gateway_uses_the_living_engines_again(stack: ComposeStack) -> None:
    worker = stack.ask("one", max_tokens=2).headers["x-hostler-worker"]
    before = identities(stack)
    stack.project.crash("gateway", "gateway")
    back = time.monotonic()
    wait_until(lambda: served_by(stack, "one") == worker, "the same engine serves", seconds=30, interval=0.05)
    seconds = time.monotonic() - back
    assert seconds < BACK_SECONDS, f"{seconds:.1f} s after the gateway's return"
    assert identities(stack) == before
    nothing_is_left_over(stack)


def served_by(stack: ComposeStack, model: str) -> str | None:
    """The worker that answers a request now; None where none does."""
    if not stack.is_up():
        return None
    answer = stack.ask(model, max_tokens=2)
    return answer.headers.get("x-hostler-worker") if answer.status_code == 200 else None


def test_an_engine_removed_behind_our_back_is_noticed_and_replaced(stack: ComposeStack, record_property: Tell) -> None:
    worker = stack.ask("two", max_tokens=2).headers["x-hostler-worker"]
    old = stack.project.engines()[worker]["Id"]

    def not_ready() -> bool:
        return not [seen for seen in stack.workers() if seen["spec"]["id"] == worker and seen["state"] == "ready"]

    docker("rm", "--force", old)
    removed = time.monotonic()
    wait_until(not_ready, "the loss is noticed", seconds=10)
    seconds = time.monotonic() - removed
    assert seconds < NOTICE_SECONDS, f"noticed {seconds:.2f} s after it was gone"
    record_property("container removed: out of the gateway's workers after", milliseconds(seconds))
    answer = stack.ask("two", max_tokens=2)
    assert answer.status_code == 200, answer.text
    fresh: dict[str, Any] = stack.project.engines()[answer.headers["x-hostler-worker"]]
    assert fresh["Id"] != old
    nothing_is_left_over(stack)

"""An upgrade with `docker compose up` while streams run: none is broken, and every engine stays."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell, hold, size
from tests.support.compose import TAG, ComposeProject, ComposeStack, build_images, docker, project
from tests.support.crowd import Caller, contents, crowd
from tests.support.stack import chat
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(240)

CHAT = "/v1/chat/completions"
READY_SECONDS = 30.0
STREAMS = size(10, 50)
TOKENS = 20
HELD = Simulation(answer_tokens=TOKENS, hold=["wait for me"])
NEXT = f"{TAG}-next"


@pytest.fixture(scope="module")
def next_release() -> Iterator[str]:
    """The tag of images that differ from this checkout's."""
    build_images()
    images = [f"hostler/{name}:" for name in ("gateway", "manager")]
    for image in images:
        docker(
            "build", "--quiet", "--tag", f"{image}{NEXT}", "--label", "release=next", "-", stdin=f"FROM {image}{TAG}"
        )
    yield NEXT
    docker("image", "rm", *(f"{image}{NEXT}" for image in images))


def engines(found: ComposeProject) -> dict[str, str]:
    return {worker: engine["State"]["StartedAt"] for worker, engine in found.engines().items()}


async def whole(callers: list[Caller]) -> int:
    """How many streams came to their end with every token."""
    answers = await asyncio.gather(*(caller.answer() for caller in callers))
    return sum(len(contents(answer.body)) == TOKENS for answer in answers)


async def test_an_upgrade_under_streams_breaks_none_of_them_and_keeps_every_engine(
    next_release: str, record_property: Tell
) -> None:
    began = time.monotonic()
    with project() as found:
        stack = ComposeStack(found)
        stack.wait_ready()
        seconds = time.monotonic() - began
        hold(seconds, READY_SECONDS, "ready after compose up")
        record_property("ready after `compose up`", f"{seconds:.1f} s")
        stack.endpoint("first", HELD, per_worker=2 * STREAMS)
        stack.ask("first").raise_for_status()
        before, image = engines(found), found.container("gateway")["Image"]
        async with crowd(found.port, STREAMS) as callers:
            for caller in callers:
                caller.post(CHAT, chat("first", "wait for me", stream=True), key=found.key)
            await asyncio.gather(*(caller.read_until(b'"content":"') for caller in callers))
            found.variables["HOSTLER_TAG"] = next_release
            upgrade = asyncio.create_task(asyncio.to_thread(found.compose, "up", "--detach", "--no-build"))
            await wait_until_async(lambda: not stack.is_up(), "the old gateway takes no more", seconds=60, interval=0.1)
            stack.order("first", Simulation(answer_tokens=TOKENS))
            assert await whole(callers) == STREAMS
            began = time.monotonic()
            await upgrade
        stack.wait_ready()
        record_property("whole", f"{STREAMS} of {STREAMS} streams")
        record_property("ready again after the last of them", f"{time.monotonic() - began:.1f} s")
        assert found.container("gateway")["Image"] != image
        stack.ask("first").raise_for_status()
        assert engines(found) == before
        assert found.faults() == []
        stack.client.close()

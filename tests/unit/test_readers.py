"""Threads that read files: a few of their own, which may hang."""

import asyncio
import threading

import pytest

from gateway.endpoints.readers import THREADS, read


async def test_what_is_found_comes_back_and_so_does_what_is_wrong() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    assert await read(lambda: 5) == 5
    with pytest.raises(FileNotFoundError, match="gone"):
        await read(fail)


async def test_while_all_threads_hang_nobody_waits_longer_than_he_wants_and_then_all_goes_on() -> None:
    back = threading.Event()
    begun: list[str] = []
    hanging = [asyncio.create_task(read(back.wait)) for _ in range(THREADS)]
    await asyncio.sleep(0)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await read(lambda: begun.append("for nobody"))
    finally:
        back.set()
    assert await asyncio.gather(*hanging) == [True] * THREADS
    assert await read(lambda: begun) == []

"""Threads that read files, beside the event loop and everybody else's threads: a disk that hangs holds these alone.

They are daemons, unlike those of an executor: one that hangs must not keep the process from ending either.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

THREADS = 4

T = TypeVar("T")
_jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
_threads: list[threading.Thread] = []


async def read(work: Callable[[], T]) -> T:
    """What `work` finds. Who is cancelled while all threads hang has it not begun at all."""
    job: Future[T] = Future()
    _jobs.put((job, work))
    if len(_threads) < THREADS:
        _threads.append(threading.Thread(target=_run, name="files", daemon=True))
        _threads[-1].start()
    return await asyncio.wrap_future(job)


def _run() -> None:
    while True:
        job, work = _jobs.get()
        if job.set_running_or_notify_cancel():
            try:
                job.set_result(work())
            except BaseException as problem:  # noqa: BLE001 - the root of a thread: who waits hears of it
                job.set_exception(problem)
        del job, work  # a thread that waits keeps nothing

"""Sees to it that each engine has the LoRA adapters it should have: loads, replaces, unloads and loads them again.

One task for each READY worker whose engine takes adapters. What an engine has is asked of itself whenever it becomes
READY: after a start or a sleep it is nothing, after a restart of the manager what was loaded before. Until the gateway
has spoken nobody knows what it should have, so nothing is loaded and nothing unloaded.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import structlog

from worker_manager import adapter_copies
from worker_manager import adapter_steps as steps
from worker_manager.adapter_copies import AdapterCopyError, AdapterOutsideError
from worker_manager.adapter_steps import Held, Load
from worker_manager.board import Board
from worker_manager.contract import ADAPTERS_FOLDER, ENGINE_SOCKET, Adapter, ObservedAdapter, WorkerState
from worker_manager.engines import lora
from worker_manager.engines.lora import LoraError
from worker_manager.engines.readiness import open_client
from worker_manager.refusals import Refusals
from worker_manager.tracked import ALIVE, Tracked

ASK_AGAIN_SECONDS = 2.0
"""Before an engine that gave no answer is asked once more."""
COPIES_AT_ONCE = 4
"""In threads of their own: a copy takes as long as the models' disk does, and hangs with it."""

logger = structlog.get_logger()


class Adapters:
    """All adapters of one manager's workers."""

    def __init__(
        self,
        board: Board,
        refusals: Refusals,
        *,
        engines: Path,
        models: Path,
        inside: Callable[[str], str],
        on_change: Callable[[], None],
    ) -> None:
        """`inside` tells how a worker's engine sees its folder of adapters."""
        self._workers = board.workers
        self._engines = engines
        self._models = models
        self._inside = inside
        self._refusals = refusals
        self._on_change = on_change
        self._wanted: dict[str, dict[str, Adapter]] | None = None
        """By worker and name; None until the gateway has spoken."""
        self._found: dict[str, dict[str, str]] = {}
        """What engines said that they have, by worker and name, while nobody knows what they should have."""
        self._held: dict[str, dict[str, Held]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._copiers = ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="adapters")
        self._slept: set[str] = set()
        """Workers that woke since what they have was last asked."""
        board.listen(self._tend)

    def want(self, adapters: Mapping[str, tuple[Adapter, ...]]) -> None:
        """Make these the adapters that each worker should have."""
        self._wanted = {worker: {one.name: one for one in some} for worker, some in adapters.items()}
        for worker, has in self._found.items():
            self._held[worker] = self._recognised(worker, has)
        self._found = {}
        for news in self._news.values():
            news.set()

    def is_unasked(self, worker: str) -> bool:
        """Whether it serves and may have adapters that nobody here knows of yet."""
        known = self._workers[worker]
        return known.state is WorkerState.READY and known.spec.lora is not None and worker not in self._held

    def of(self, worker: str) -> tuple[ObservedAdapter, ...]:
        """The adapters of a worker and how far it has come with each."""
        known, held = self._workers[worker], self._held.get(worker, {})
        wanted = self._should_have(worker)
        if not wanted or known.spec.lora is None:
            return ()
        return tuple(steps.observed(one, held.get(name), known.since) for name, one in sorted(wanted.items()))

    async def close(self) -> None:
        """End all tasks; the engines keep what they have."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tend(self, worker: str, known: Tracked | None) -> None:
        """A task runs exactly while the worker is READY; after that it is asked anew what it has."""
        if known is None or known.state not in ALIVE:
            self._slept.discard(worker)
        elif known.state is WorkerState.WAKING:
            self._slept.add(worker)
        is_ready = known is not None and known.state is WorkerState.READY and known.spec.lora is not None
        if is_ready and (worker not in self._tasks or self._tasks[worker].done()):
            self._news[worker] = asyncio.Event()
            self._tasks[worker] = asyncio.create_task(self._keep(worker), name=f"adapters-{worker}")
        elif not is_ready and worker in self._tasks:
            self._tasks.pop(worker).cancel()
            self._news.pop(worker)
            self._held.pop(worker, None)
            self._found.pop(worker, None)

    async def _keep(self, worker: str) -> None:
        """Until cancelled."""
        served_name, news = self._workers[worker].spec.served_names[0], self._news[worker]
        async with open_client(self._engines / worker / ENGINE_SOCKET, lora.LIST_SECONDS) as client:
            self._note(worker, await _listed(client, served_name))
            self._on_change()
            while True:
                news.clear()
                if worker not in self._held:
                    await news.wait()
                    continue
                wanted, held = self._should_have(worker), self._held[worker]
                step = steps.next_step(wanted, held, time.time())
                if step is None:
                    await _wait(news, steps.next_try(wanted, held))
                elif isinstance(step, Load):
                    name = step.adapter.name
                    held[name] = await self._load(worker, step.adapter, held.get(name), client)
                    self._on_change()
                elif await self._unload(worker, step.name, client):
                    del held[step.name]

    def _note(self, worker: str, has: dict[str, str]) -> None:
        """Take down what an engine has; what that means shows once it is known what it should have."""
        if self._wanted is None:
            self._found[worker] = has
        else:
            self._held[worker] = self._recognised(worker, has)
        self._slept.discard(worker)

    def _should_have(self, worker: str) -> dict[str, Adapter]:
        return (self._wanted or {}).get(worker, {})

    def _recognised(self, worker: str, has: Mapping[str, str]) -> dict[str, Held]:
        """What an engine was found to have: of the wanted revision where it was loaded from its copy.

        What it has after a sleep is loaded again, as the rest is that was unloaded before (`sleeper`): a load that was
        under way when it fell asleep may have come to its end.
        """
        wanted, now = self._should_have(worker), time.time()
        found = dict.fromkeys(has, Held(since=now, loaded=steps.OTHER))
        for name, adapter in wanted.items():
            if worker not in self._slept and has.get(name) == self._folder_inside(worker, adapter):
                found[name] = Held(since=now, loaded=adapter.revision)
        return found

    async def _load(self, worker: str, adapter: Adapter, before: Held | None, client: httpx.AsyncClient) -> Held:
        began = time.monotonic()
        target = self._engines / worker / ADAPTERS_FOLDER
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._copiers, adapter_copies.place, self._models, adapter, target)
            if before is not None:
                await lora.unload(client, adapter.name)  # the last try may have succeeded after we gave it up
            await lora.load(client, adapter.name, self._folder_inside(worker, adapter))
        except (AdapterCopyError, LoraError) as error:
            if isinstance(error, AdapterOutsideError):
                self._refusals.note("policy", f"adapter {adapter.name}: {error}")
            held = steps.failed(adapter, before, str(error), time.time())
            logger.warning("adapter_failed", worker=worker, adapter=adapter.name, tries=held.tries, cause=str(error))
            return held
        seconds = round(time.monotonic() - began, 3)
        logger.info("adapter_loaded", worker=worker, adapter=adapter.name, revision=adapter.revision, seconds=seconds)
        return steps.loaded(adapter, time.time())

    async def _unload(self, worker: str, name: str, client: httpx.AsyncClient) -> bool:
        """Whether the engine no longer has it.

        The copy of its files stays as long as the engine: a request that still waits in there may have it read again.
        """
        try:
            await lora.unload(client, name)
        except LoraError as error:
            logger.warning("adapter_not_unloaded", worker=worker, adapter=name, cause=str(error))
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            return False
        logger.info("adapter_unloaded", worker=worker, adapter=name)
        return True

    def _folder_inside(self, worker: str, adapter: Adapter) -> str:
        return f"{self._inside(worker)}/{adapter_copies.folder_name(adapter)}"


async def _wait(news: asyncio.Event, until: float | None) -> None:
    """Until there is news, or it is time for the next try."""
    try:
        async with asyncio.timeout(None if until is None else max(0.0, until - time.time())):
            await news.wait()
    except TimeoutError:
        return


async def _listed(client: httpx.AsyncClient, served_name: str) -> dict[str, str]:
    """The adapters an engine has, as soon as it tells."""
    while True:
        try:
            return await lora.adapters(client, served_name)
        except LoraError as error:
            logger.warning("adapters_unknown", cause=str(error))
            await asyncio.sleep(ASK_AGAIN_SECONDS)

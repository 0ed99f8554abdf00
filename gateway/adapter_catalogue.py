"""LoRA adapters of endpoints, as their workers should have them and as users want to see them."""

import time
from collections.abc import Awaitable, Callable, Iterable

from gateway.endpoints.adapter_rules import misfit
from gateway.endpoints.status import AdapterView
from gateway.endpoints.types import AdapterFacts, AdapterSource, EndpointSpec, ModelFacts
from gateway.errors import sentences
from gateway.seen_files import BEING_READ, SeenFiles, Source
from worker_manager.contract import (
    Adapter,
    AdapterState,
    Download,
    DownloadState,
    ObservedSet,
    ObservedWorker,
    WorkerState,
)

MIB = 1024 * 1024


class AdapterCatalogue:
    """Knows every adapter's files."""

    def __init__(
        self, read: Callable[[AdapterSource], Awaitable[AdapterFacts | None]], clock: Callable[[], float] = time.time
    ) -> None:
        # files that are being replaced can't be read for a moment: workers have copies of what was there
        self._seen: SeenFiles[AdapterSource, AdapterFacts] = SeenFiles(read, clock, unreadable_stay=True)

    def forget(self) -> None:
        """Look at all files afresh: something has changed."""
        self._seen.forget()

    async def look(self, specs: Iterable[EndpointSpec]) -> None:
        """Look at the files of all adapters of these endpoints beside the event loop."""
        await self._seen.look(source for spec in specs for source in spec.adapters.values())

    def of(self, spec: EndpointSpec, model: ModelFacts | None) -> tuple[tuple[Adapter, ...], dict[str, str]]:
        """What each worker of an endpoint should have, and the others with the reason; "" where it is still to come.

        `model`: None while its files can't be read; the workers that it has go on, and so do their adapters.
        """
        adapters: list[Adapter] = []
        problems: dict[str, str] = {}
        for name, source in sorted(spec.adapters.items()):
            facts, why = self._seen.of(source)
            problem = misfit(facts, spec, model) if facts is not None else why
            if facts is None or problem:
                problems[name] = problem if problem != BEING_READ else ""
            else:
                adapters.append(Adapter(name=name, path=facts.path, revision=facts.revision, rank=facts.rank))
        return tuple(adapters), problems

    def views(
        self,
        spec: EndpointSpec,
        workers: Iterable[ObservedWorker],
        model: ModelFacts | None,
        observed: ObservedSet | None,
    ) -> dict[str, AdapterView]:
        """Every adapter of an endpoint as users see it; `workers`: the endpoint's own."""
        downloads = observed.downloads if observed is not None else ()
        return {name: self._view(name, spec, list(workers), model, downloads) for name in spec.adapters}

    def _view(
        self,
        name: str,
        spec: EndpointSpec,
        workers: list[ObservedWorker],
        model: ModelFacts | None,
        downloads: tuple[Download, ...],
    ) -> AdapterView:
        facts, why = self._seen.of(spec.adapters[name])
        problem = misfit(facts, spec, model) if facts is not None else why
        having: list[str] = []
        if problem == BEING_READ:
            state, reason = "loading", problem
        elif problem:
            state, reason = "failed", problem
        elif facts is None:
            state, reason = _of_download(download_of(spec.adapters[name], downloads))
        else:
            state, reason, having = _of_workers(name, facts.revision, workers)
        return AdapterView(
            state=state,
            reason=reason,
            workers=tuple(having),
            rank=facts.rank if facts is not None else None,
            size_mib=-(-facts.size_bytes // MIB) if facts is not None else None,
        )


def download_of(source: Source, downloads: tuple[Download, ...]) -> Download | None:
    """The download of a model or an adapter, if there is one."""
    wanted = (source.model, source.revision or "main")
    return next((download for download in downloads if (download.model, download.revision) == wanted), None)


def _of_download(download: Download | None) -> tuple[str, str]:
    if download is not None and download.failure is not None:
        return "failed", sentences(download.failure.message, download.failure.hint)
    if download is not None and download.state is DownloadState.RUNNING:
        return "downloading", f"{download.bytes_done} bytes are here"
    return "downloading", "it is not downloaded yet"


def _of_workers(name: str, revision: str, workers: list[ObservedWorker]) -> tuple[str, str, list[str]]:
    """State, reason, and the workers that have it. `cold`: no worker is awake."""
    awake = [worker for worker in workers if worker.state is WorkerState.READY]
    told = {worker.spec.id: one for worker in awake for one in worker.adapters if one.name == name}
    having = [one for one, its in told.items() if its.state is AdapterState.READY and its.revision == revision]
    if having:
        return "ready", "", having
    failed = [its.reason for its in told.values() if its.state is AdapterState.FAILED]
    if failed and len(failed) == len(told):
        return "failed", failed[0], []
    return ("loading" if awake else "cold"), "", []

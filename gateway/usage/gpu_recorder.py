"""The endpoints' use of GPUs on its way to the database: added up as the manager is heard, written now and then."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from gateway.database.connection import DatabaseError
from gateway.prices import Price, of_energy
from gateway.usage.gpu_store import GpuStore
from gateway.usage.holders import LONGEST_SECONDS, Holders, Took
from gateway.usage.types import GpuSum
from worker_manager.contract import ObservedSet

log = structlog.get_logger(__name__)

SAVE_SECONDS = 10.0
"""Between two writes: what a `kill -9` may cost at the most, but for what is under way since the manager was heard."""

Sums = dict[tuple[str, str], GpuSum]
"""By day and endpoint."""


class GpuRecorder:
    """Adds up what each endpoint holds of the GPUs, at the price that it has then."""

    def __init__(
        self,
        store: GpuStore,
        price: Callable[[str], Price | None],
        kwh_price: float | None,
        steady: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        """`price`: of an endpoint, if it has one; `kwh_price`: units for a kilowatt hour."""
        self._store = store
        self._price = price
        self._kwh_price = kwh_price
        self._steady = steady
        self._unix = unix
        self._holders = Holders()
        self._observed: ObservedSet | None = None
        self._prices: dict[str, Price | None] = {}
        """As they were at the last look: what has passed since then costs by them."""
        self._unsaved: Sums = {}
        self._writing: Sums = {}
        """What a write has taken; it stays where that failed."""
        self._saving = asyncio.Lock()

    def notice(self, observed: ObservedSet) -> None:
        """The manager was heard: account for the time since it was heard before."""
        self._observed = observed
        day = datetime.fromtimestamp(self._unix(), UTC).strftime("%Y-%m-%d")
        took = self._holders.step(observed, self._steady())
        _add(self._unsaved, {(day, endpoint): self._priced(endpoint, one) for endpoint, one in took.items()})
        self._prices = {worker.spec.endpoint: self._price(worker.spec.endpoint) for worker in observed.workers}

    def look(self) -> None:
        """Account for the time until now: a price may have changed, or somebody asks."""
        if self._observed is not None and self._holders.since(self._steady()) <= LONGEST_SECONDS:
            self.notice(self._observed)

    def _priced(self, endpoint: str, took: Took) -> GpuSum:
        price, energy, kwh_price = self._prices.get(endpoint), took.energy_mj, self._kwh_price
        return GpuSum(
            took.gpu_ms,
            price.of_gpu(took.gpu_ms) if price is not None else 0,
            energy,
            of_energy(energy, kwh_price) if energy is not None and kwh_price is not None else None,
        )

    async def run(self) -> None:
        """Write what was added up, for ever; cancel it, and `close` writes the rest."""
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            # what is cut off as it is written may be written, and would be once more
            await asyncio.shield(asyncio.ensure_future(self._try_to_save()))

    async def _try_to_save(self) -> None:
        try:
            await self.save()
        except DatabaseError as problem:
            log.warning("the use of GPUs cannot be written, and is kept in memory", problem=str(problem))

    async def save(self) -> None:
        """Write what is not written yet. Raises DatabaseError; then all of it is kept."""
        async with self._saving:  # a report that asks must find what a write under way has taken
            _add(self._writing, self._unsaved)
            self._unsaved = {}
            if self._writing:
                await self._store.add(self._writing)
                self._writing = {}

    async def flush(self) -> None:
        """Write what was added up until now, if the database takes it: a report without it is better than none."""
        self.look()
        with contextlib.suppress(DatabaseError):
            await self.save()

    async def close(self) -> None:
        """Account for the time until now, and write what is left."""
        self.look()
        try:
            await self.save()
        except DatabaseError as problem:
            log.error("the use of GPUs is lost: the database took no writes", problem=str(problem))  # noqa: TRY400 - the cause is all there is to tell


def _add(sums: Sums, more: Sums) -> None:
    for group, one in more.items():
        sums[group] = sums.get(group, GpuSum()).plus(one)

"""Since when each endpoint has had requests waiting and no worker for them: what the starvation bound counts from.

Not the age of the oldest waiter: an overloaded endpoint always has old ones, and would be served before everybody else
for ever. Nor does the clock start again when a waiter gives up and another takes its place.
"""

from collections.abc import Iterable

from gateway.scheduling.generations import is_awake
from gateway.scheduling.types import KnownWorker, WantedEndpoint


class Patience:
    """Remembers from look to look; times are Unix seconds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._served: dict[str, float] = {}

    def look(self, now: float, endpoints: Iterable[WantedEndpoint], workers: Iterable[KnownWorker]) -> dict[str, float]:
        """Since when, by endpoint, for those that wait without a worker."""
        serving = {worker.spec.endpoint for worker in workers if _serves(worker)}
        self._served |= dict.fromkeys(serving, now)
        before, self._since = self._since, {}
        for endpoint in endpoints:
            if endpoint.waiting and endpoint.waiting_since is not None and endpoint.name not in serving:
                fresh = max(endpoint.waiting_since, self._served.get(endpoint.name, 0.0))
                self._since[endpoint.name] = before.get(endpoint.name, fresh)
        return dict(self._since)


def _serves(worker: KnownWorker) -> bool:
    return is_awake(worker) and not worker.draining

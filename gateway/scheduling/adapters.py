"""LoRA adapters as requests see them: which workers have one loaded, and when waiting for it is in vain."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from gateway.errors import EndpointFailed, GatewayError, NoWorker
from gateway.scheduling.queue import Waiter
from gateway.scheduling.slots import Slot
from gateway.types import Wish

RETRY_SECONDS = 30.0


class AdapterNews(NamedTuple):
    """The adapters of one endpoint, by name."""

    revisions: Mapping[str, str]
    """Which revision requests are to be answered by."""
    problems: Mapping[str, str]
    """Why no worker can have it; empty: it is still to come."""

    def names(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.revisions, *self.problems))


NOTHING = AdapterNews({}, {})


class Adapters:
    """What every endpoint's adapters should be."""

    def __init__(self) -> None:
        self._news: dict[str, AdapterNews] = {}
        self._deleted: dict[str, frozenset[str]] = {}
        """Those that each endpoint no longer has since its adapters last changed. One that was never heard of is not
        deleted: it was added since, or nothing was planned yet."""

    def set(self, news: dict[str, AdapterNews]) -> None:
        """Take over the adapters of all endpoints that have any."""
        for endpoint in self._news.keys() | news.keys() | self._deleted.keys():
            before, now = self._news.get(endpoint, NOTHING).names(), news.get(endpoint, NOTHING).names()
            if before != now:
                self._deleted[endpoint] = before - now
            elif not now:
                self._deleted.pop(endpoint, None)
        self._news = news

    def holders(self, endpoint: str, adapter: str, slots: Iterable[Slot]) -> list[Slot]:
        """Those of an endpoint's workers that have the adapter, in the revision that it should be of."""
        revision = self._news.get(endpoint, NOTHING).revisions.get(adapter)
        return [slot for slot in slots if revision is not None and slot.adapters.get(adapter) == revision]

    def refusal(self, endpoint: str, adapter: str, slots: Iterable[Slot]) -> GatewayError | None:
        """Why nobody should wait for this adapter; None where waiting makes sense."""
        news = self._news.get(endpoint, NOTHING)
        if adapter not in news.revisions:
            why = news.problems.get(adapter, "")
            return _cannot(endpoint, adapter, why) if why else None
        serving = [slot for slot in slots if slot.serves()]
        if serving and all(adapter in slot.adapter_failures for slot in serving):
            return _cannot(endpoint, adapter, serving[0].adapter_failures[adapter])
        return None

    def in_vain(
        self, endpoint: str, waiters: Iterable[Waiter], slots: Iterable[Slot]
    ) -> Iterator[tuple[Waiter, GatewayError]]:
        """Those who wait for an adapter that they will not get, each with the reason."""
        deleted = self._deleted.get(endpoint, frozenset())
        for waiter in waiters:
            adapter = waiter.wish.adapter
            if not adapter:
                continue
            if adapter in deleted:
                yield waiter, NoWorker(f"The adapter '{adapter}' of '{endpoint}' was deleted", retry_after=60)
            elif (error := self.refusal(endpoint, adapter, slots)) is not None:
                yield waiter, error


def prefix_of(wish: Wish) -> bytes:
    """What makes the prompt, told apart by adapter: engines cache what they compute with each for itself."""
    return wish.adapter.encode() + b"\0" + wish.prefix


def with_adapter(adapter: str) -> str:
    """The words for a worker that has this adapter; none for any worker."""
    return f" with the adapter '{adapter}'" if adapter else ""


def _cannot(endpoint: str, adapter: str, why: str) -> EndpointFailed:
    return EndpointFailed(
        f"The adapter '{adapter}' of the endpoint '{endpoint}' cannot be served: {why}", retry_after=RETRY_SECONDS
    )

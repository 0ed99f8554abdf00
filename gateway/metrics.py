"""What Prometheus can ask for: counts and times of requests, and how the workers stand.

What is counted for every request are plain numbers in plain dicts; they become Prometheus's families when it asks. The
client library's own counters take a lock and build a key of strings each time: ten times the cost.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from operator import add
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
NOWHERE = "-"
"""The label of requests that came to no endpoint."""


class Times:
    """A histogram of seconds: how many fell into each bucket of SECONDS and above, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def add(self, other: "Times") -> None:
        """Count all of another's."""
        self.counts = list(map(add, self.counts, other.counts))
        self.total += other.total

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds with cumulative counts, as Prometheus has them."""
        bounds = [*map(str, SECONDS), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class Tally(NamedTuple):
    """Where requests for one endpoint that ended with one status are counted, by their times."""

    whole: Times
    queued: Times
    """Only of those that waited for a worker."""


class RequestCounts(Collector):
    """Requests by endpoint and status, and their times by endpoint."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, int], Tally] = {}

    def tally(self, endpoint: str, status: int) -> Tally:
        """Where such requests are counted; those that came to no endpoint have an empty one."""
        found = self._tallies.get((endpoint, status))
        if found is None:
            found = self._tallies[endpoint, status] = Tally(Times(), Times())
        return found

    def collect(self) -> Iterator[Metric]:
        """The families, for Prometheus."""
        requests = CounterMetricFamily(
            "hostler_requests", "Inference requests by endpoint and status", labels=["endpoint", "status"]
        )
        times: dict[str, Tally] = {}
        for (endpoint, status), tally in self._tallies.items():
            number = sum(tally.whole.counts)
            requests.add_metric([endpoint or NOWHERE, str(status)], number)
            if endpoint:
                whole, queued = times.setdefault(endpoint, Tally(Times(), Times()))
                whole.add(tally.whole)
                queued.add(tally.queued)
                queued.counts[0] += number - sum(tally.queued.counts)  # all others waited for 0 seconds
        yield requests
        for name, meaning, which in (
            ("hostler_request_seconds", "Seconds from first to last byte", 0),
            ("hostler_queue_seconds", "Seconds a request waited for a worker", 1),
        ):
            family = HistogramMetricFamily(name, meaning, labels=["endpoint"])
            for endpoint, both in times.items():
                family.add_metric([endpoint], both[which].buckets(), both[which].total)
            yield family


class Metrics:
    """The gateway's own numbers; one registry an app, so that tests don't share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestCounts()
        self.registry.register(self.requests)
        self.in_flight = Gauge("hostler_in_flight", "Requests on workers now", ["endpoint"], registry=self.registry)
        self.waiting = Gauge(
            "hostler_waiting", "Requests that wait for a worker now", ["endpoint"], registry=self.registry
        )
        self.workers = Gauge("hostler_workers", "Workers by state", ["endpoint", "state"], registry=self.registry)
        self.sign_ins_failed = Counter(
            "hostler_sign_ins_failed_total",
            "Requests refused for their credential, by what was wrong with it",
            ["reason"],
            registry=self.registry,
        )
        self.usage_dropped = Counter(
            "hostler_usage_dropped_total",
            "Requests whose usage was not recorded because the queue to the database was full",
            registry=self.registry,
        )
        self.usage_unwritten = Gauge(
            "hostler_usage_unwritten", "Requests whose usage waits to be written", registry=self.registry
        )
        self.database_ok = Gauge(
            "hostler_database_ok", "1 while the database takes writes, is whole, and has room", registry=self.registry
        )
        self.manager_up = Gauge("hostler_manager_up", "1 while the worker manager answers", registry=self.registry)
        self.tasks = Gauge("hostler_tasks", "Tasks of the event loop", registry=self.registry)
        self.idle_connections = Gauge(
            "hostler_idle_connections",
            "Connections to engines that are kept for the next request",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def tell_of_certificate(self, ends: Callable[[], float]) -> None:
        """Also tell when the TLS certificate expires, in Unix time; without TLS there is no such number."""
        gauge = Gauge(
            "hostler_certificate_ends", "Unix time at which the TLS certificate expires", registry=self.registry
        )
        gauge.set_function(ends)

    def render(self) -> bytes:
        """The whole page, in Prometheus's text format."""
        return generate_latest(self.registry)

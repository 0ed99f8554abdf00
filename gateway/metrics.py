"""What Prometheus can ask for: counts and times of requests, and how the workers stand."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The gateway's own numbers; one registry an app, so that tests don't share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hostler_requests_total",
            "Inference requests by endpoint and status",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "hostler_request_seconds",
            "Seconds from first to last byte",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queued = Histogram(
            "hostler_queue_seconds",
            "Seconds a request waited for a worker",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("hostler_in_flight", "Requests on workers now", ["endpoint"], registry=self.registry)
        self.waiting = Gauge(
            "hostler_waiting", "Requests that wait for a worker now", ["endpoint"], registry=self.registry
        )
        self.workers = Gauge("hostler_workers", "Workers by state", ["endpoint", "state"], registry=self.registry)
        self.manager_up = Gauge("hostler_manager_up", "1 while the worker manager answers", registry=self.registry)
        self.tasks = Gauge("hostler_tasks", "Tasks of the event loop", registry=self.registry)
        self.idle_connections = Gauge(
            "hostler_idle_connections",
            "Connections to engines that are kept for the next request",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        """The whole page, in Prometheus's text format."""
        return generate_latest(self.registry)

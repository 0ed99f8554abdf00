"""What Prometheus reads is what was counted."""

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import SECONDS, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_endpoint_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 429):
        metrics.requests.tally("a", status).whole.observe(1.0)
    metrics.requests.tally("", 401).whole.observe(1.0)
    seen = samples(metrics)
    assert seen["hostler_requests_total", "a", "200"] == 2
    assert seen["hostler_requests_total", "a", "429"] == 1
    assert seen["hostler_requests_total", "-", "401"] == 1
    assert seen["hostler_request_seconds_count", "a"] == 3, "of every status together"
    assert ("hostler_request_seconds_count", "-") not in seen


def test_times_fall_into_buckets_that_add_up() -> None:
    metrics = Metrics()
    for seconds in (0.001, SECONDS[0], 0.02, 10_000.0):
        metrics.requests.tally("a", 200).whole.observe(seconds)
    metrics.requests.tally("a", 200).queued.observe(2.0)
    seen = samples(metrics)
    assert seen["hostler_request_seconds_bucket", "a", "0.01"] == 2, "a bound belongs to its bucket"
    assert seen["hostler_request_seconds_bucket", "a", "0.05"] == 3
    assert seen["hostler_request_seconds_bucket", "a", "600.0"] == 3
    assert seen["hostler_request_seconds_bucket", "a", "+Inf"] == 4
    assert seen["hostler_request_seconds_count", "a"] == 4
    assert seen["hostler_request_seconds_sum", "a"] == 10_000.031
    assert seen["hostler_queue_seconds_bucket", "a", "0.01"] == 3, "those that did not wait"
    assert seen["hostler_queue_seconds_count", "a"] == 4
    assert seen["hostler_queue_seconds_sum", "a"] == 2.0


def test_a_gateway_that_has_served_nothing_has_a_page_all_the_same() -> None:
    assert b"hostler_requests_total" in Metrics().render()

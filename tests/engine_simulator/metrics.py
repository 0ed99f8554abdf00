"""`/metrics` in vLLM's names: gauges, counters and histograms of one engine."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
ITL_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
E2E_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)


class Histogram:
    """Counts by bucket; all figures in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count the same figure `times` times."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._sum += seconds * times

    def lines(self, name: str, labels: str) -> list[str]:
        """Give the histogram as Prometheus text."""
        result, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            total += count
            result.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        return [*result, f"{name}_count{{{labels}}} {float(total)}", f"{name}_sum{{{labels}}} {self._sum}"]


class Metrics:
    """What the engine has done since its start."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.success: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self.first_token = Histogram(TTFT_BUCKETS)
        self.between_tokens = Histogram(ITL_BUCKETS)
        self.whole = Histogram(E2E_BUCKETS)

    def text(self, model: str, gauges: Mapping[str, float], counters: Mapping[str, float], sleep_level: int) -> bytes:
        """Give everything as Prometheus text; `gauges` and `counters` are the engine's own, by name."""
        labels = f'engine="0",model_name="{model}"'
        lines = []
        for kind, figures in (("gauge", gauges), ("counter", counters)):
            for name, value in figures.items():
                lines += [f"# TYPE {name} {kind}", f"{name}{{{labels}}} {float(value)}"]
        lines.append("# TYPE vllm:engine_sleep_state gauge")
        states = {"awake": sleep_level == 0, "weights_offloaded": sleep_level == 1, "discard_all": sleep_level > 1}
        for state, holds in states.items():
            lines.append(f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {float(holds)}')
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, count in self.success.items():
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(count)}')
        lines += self.first_token.lines("vllm:time_to_first_token_seconds", labels)
        lines += self.between_tokens.lines("vllm:inter_token_latency_seconds", labels)
        lines += self.whole.lines("vllm:e2e_request_latency_seconds", labels)
        return ("\n".join(lines) + "\n").encode()

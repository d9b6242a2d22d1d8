"""What the gateway tells Prometheus. No label holds a key, a person or a listing: anybody may read this."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)


class Metrics:
    """Counters of one gateway.

    Args:
        gauges: what is read when somebody asks: name -> (help, value).
    """

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry = CollectorRegistry()
        answers = Counter("kpaas_gateway_answers", "Calls answered, by status.", ["status"], registry=self._registry)
        self._refusals = Counter(
            "kpaas_gateway_refusals", "Calls the gateway answered itself, by reason.", ["code"], registry=self._registry
        )
        self._answers = {group: answers.labels(f"{group}xx") for group in range(1, 6)}
        self._overhead = Histogram(
            "kpaas_gateway_overhead_seconds",
            "The gateway's own time a call.",
            buckets=_OVERHEAD,
            registry=self._registry,
        )
        self._registry.register(_Gauges(gauges))
        ProcessCollector(registry=self._registry)

    def answered(self, status: int, overhead: float) -> None:
        """Count an answer; `overhead` in seconds."""
        self._answers[status // 100].inc()
        self._overhead.observe(overhead)

    def refused(self, code: str) -> None:
        """Count a refusal."""
        self._refusals.labels(code).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, (description, value) in self._gauges.items():
            yield GaugeMetricFamily(f"kpaas_gateway_{name}", description, value=value())

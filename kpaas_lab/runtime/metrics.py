"""What a model server counts, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One server's counters; names as Prometheus recommends (base units, `_total`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "kpaas_lab_infer_requests", "Inference requests by HTTP status.", ["status"], registry=self.registry
        )
        self._by_status: dict[int, Counter] = {}
        self.seconds = Histogram(
            "kpaas_lab_infer_seconds", "From a request's body to its answer.", buckets=_SECONDS, registry=self.registry
        )
        self.predict_seconds = Histogram(
            "kpaas_lab_predict_seconds", "One run of the model.", buckets=_SECONDS, registry=self.registry
        )
        self.batch_rows = Histogram(
            "kpaas_lab_batch_rows", "Rows in one run of the model.", buckets=_ROWS, registry=self.registry
        )
        self.in_flight = Gauge("kpaas_lab_requests_in_flight", "Inference requests now.", registry=self.registry)
        self.queued = Gauge(
            "kpaas_lab_requests_queued", "Inference requests that wait for a run.", registry=self.registry
        )
        self.version = Gauge("kpaas_lab_model_version", "The version that is served.", registry=self.registry)
        self.load_failures = Counter(
            "kpaas_lab_model_load_failures", "Updates that could not be loaded.", registry=self.registry
        )

    def count(self, status: int, seconds: float) -> None:
        """One answered inference request."""
        child = self._by_status.get(status)
        if child is None:
            child = self._by_status[status] = self._requests.labels(str(status))
        child.inc()
        self.seconds.observe(seconds)

    def ran(self, rows: int, seconds: float) -> None:
        """One run of the model."""
        self.batch_rows.observe(rows)
        self.predict_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, for a scrape."""
        return generate_latest(self.registry)

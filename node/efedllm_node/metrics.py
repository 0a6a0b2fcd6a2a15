"""Prometheus metrics of one node; a registry of its own, so that several nodes fit into one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from efedllm.wire import PeerStats


class _WireCollector(Collector):
    """Shows what all connections together carried, without a second set of counters on the hot path."""

    def __init__(self, stats: PeerStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[CounterMetricFamily]:
        labels = ["direction", "frame"]
        frames = CounterMetricFamily("efedllm_node_wire_frames", "Frames sent and received", labels=labels)
        octets = CounterMetricFamily("efedllm_node_wire_bytes", "Frame bytes sent and received", labels=labels)
        for direction, counts in (("sent", self._stats.sent), ("received", self._stats.received)):
            for frame, count in counts.items():
                frames.add_metric([direction, frame.name.lower()], count.frames)
                octets.add_metric([direction, frame.name.lower()], count.bytes)
        yield frames
        yield octets


class NodeMetrics:
    """Counters the node increments, and gauges read when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.wire = PeerStats()
        """Shared by every connection of this node."""
        self.registry.register(_WireCollector(self.wire))
        self.positions = Counter("efedllm_node_positions", "Positions computed", registry=self.registry)
        self.tokens = Counter("efedllm_node_tokens", "Tokens sampled (last hop)", registry=self.registry)
        self.pauses = Counter("efedllm_node_payment_pauses", "Jobs paused for payment", registry=self.registry)
        self.jobs = Counter("efedllm_node_jobs", "Jobs by how they ended", ["end"], registry=self.registry)
        self.refusals = Counter("efedllm_node_refusals", "Jobs refused, by code", ["code"], registry=self.registry)
        self.batches = Counter("efedllm_node_batches_posted", "Batch roots posted", registry=self.registry)
        self.settled = Counter("efedllm_node_settlements", "Vouchers settled", ["reason"], registry=self.registry)
        self.duty_failures = Counter(
            "efedllm_node_duty_failures", "Chain duties put off", ["duty"], registry=self.registry
        )

    def ended(self, how: str) -> None:
        """A job ended: done, cancelled or aborted."""
        self.jobs.labels(how).inc()

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that `read` gives at scrape time."""
        Gauge(f"efedllm_node_{name}", text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)

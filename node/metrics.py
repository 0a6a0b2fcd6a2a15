"""Prometheus metrics of one node; a registry of its own, so that several nodes fit into one process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """Counters the node increments, and gauges read when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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

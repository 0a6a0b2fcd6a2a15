"""Counters of one verifier, and the small HTTP server that shows them."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from efedllm.errors import listen_error
from efedllm_verifier.audit_report import NodeAudit


class VerifierMetrics:
    """Prometheus metrics with a registry of their own, so that several verifiers fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.epoch = Gauge("efedllm_verifier_epoch", "Epoch by the chain's clock", registry=self.registry)
        self.leaves = Counter("efedllm_verifier_leaves", "Audited leaves", ["outcome", "code"], registry=self.registry)
        self.nodes = Counter("efedllm_verifier_nodes", "Audited nodes", ["outcome"], registry=self.registry)
        self.bytes = Counter("efedllm_verifier_fetched_bytes", "Boundary bytes fetched", registry=self.registry)
        self.seconds = Histogram("efedllm_verifier_leaf_seconds", "Time of one leaf's audit", registry=self.registry)
        self.statistic = Histogram(
            "efedllm_verifier_statistic",
            "Worst statistic of a leaf; above 1 fails",
            buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4),
            registry=self.registry,
        )
        self.transactions = Counter(
            "efedllm_verifier_transactions", "Duties on chain", ["duty", "result"], registry=self.registry
        )

    def count_audit(self, audit: NodeAudit) -> None:
        """Add one finished audit."""
        for leaf in audit.leaves:
            self.leaves.labels(leaf.outcome.name.lower(), leaf.code).inc()
            self.bytes.inc(leaf.bytes_fetched)
            self.seconds.observe(leaf.seconds)
            if leaf.statistic is not None:
                self.statistic.observe(leaf.statistic)
        worst = max((leaf.outcome for leaf in audit.leaves), default=None)
        self.nodes.labels("empty" if worst is None else worst.name.lower()).inc()


class Health:
    """Healthy while the last look at the chain succeeded less than `patience` seconds ago."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._last: float | None = None

    def beat(self) -> None:
        """A look at the chain succeeded."""
        self._last = self._clock()

    @property
    def healthy(self) -> bool:
        return self._last is not None and self._clock() - self._last < self._patience


async def serve(metrics: VerifierMetrics, health: Health, listen: tuple[str, int]) -> tuple[web.AppRunner, int]:
    """Start the server; returns its runner (call `cleanup`) and the port. Raises ConfigError "port-in-use" or
    "bad-listen"."""

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def show_health(_request: web.Request) -> web.Response:
        return web.json_response({"healthy": health.healthy}, status=200 if health.healthy else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", show_metrics), web.get("/healthz", show_health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, listen[0], listen[1])
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise listen_error(*listen, error) from error
    return runner, int(runner.addresses[0][1])

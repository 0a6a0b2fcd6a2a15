"""The life of a node process: prepare, serve, follow the chain, drain, leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from efedllm import __version__
from efedllm.chain import Chain, Deployment, keystore
from efedllm.chain.disputes import FOLDER, EvidenceFolder
from efedllm.commitments.eip712 import to_hex
from efedllm.commitments.messages import HALF_PROFILE
from efedllm.engine.protocol import Executor, compute_of
from efedllm.errors import ChainError
from efedllm.logs import get_logger
from efedllm.models.manifest import Manifest
from efedllm.wire import Identity
from efedllm_node.chain_clock import ChainClock
from efedllm_node.compute.batcher import Batcher
from efedllm_node.compute.engine_step import EngineStep
from efedllm_node.compute.scheduler import BatchLimits
from efedllm_node.compute.trace_files import IN, Traces
from efedllm_node.compute.weights import check_registered, prepare
from efedllm_node.config import NodeConfig
from efedllm_node.epoch.loop import EpochLoop
from efedllm_node.epoch.registration import (
    ServingTerms,
    WantedRegistration,
    ensure_registered,
    ensure_stake,
    terms,
    wait_for_signer,
)
from efedllm_node.facts import NodeFacts
from efedllm_node.home import HomeLock, listen, load_signer
from efedllm_node.http.app import make_app
from efedllm_node.jobs.dispatcher import Dispatcher
from efedllm_node.jobs.equivocation_watch import EquivocationWatch
from efedllm_node.jobs.services import NodeServices
from efedllm_node.metrics import NodeMetrics
from efedllm_node.payments.rules import SessionAccount, billed_on_crash
from efedllm_node.payments.sessions import ServedSessions
from efedllm_node.storage.store import NodeStore
from efedllm_node.storage.store_origin import establish

if TYPE_CHECKING:
    from efedllm.engine.memory.layer_streaming import TierReport

Wrapper = Callable[[Executor], Executor]
DATABASE = "node.sqlite"


class NodeApp:
    """One node. `start`, then `drain` and `close`, or only `close` to stop at once."""

    def __init__(self, config: NodeConfig, executor_wrapper: Wrapper | None = None) -> None:
        self.config = config
        self._wrap = executor_wrapper
        self._stack = AsyncExitStack()
        self._log = get_logger("node")
        self.failed: asyncio.Future[None] | None = None
        self.address = ""
        self.endpoint = ""
        self.price = 0
        self.compute = ""
        self.tiers: TierReport | None = None
        self.dispatcher: Dispatcher
        self.epoch_loop: EpochLoop
        self.store: NodeStore
        self.chain: Chain

    async def start(self) -> None:
        """Everything up to serving. On any error what was begun is undone, and the error raised."""
        self.failed = asyncio.get_running_loop().create_future()
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        config, stack = self.config, self._stack
        stack.callback(HomeLock.take(config.home).release)
        # Early: loading a model only to find the port taken would waste minutes.
        bound = listen(config.listen_host, config.listen_port)
        stack.callback(bound.close)
        account = await asyncio.to_thread(keystore.load, config.keystore, config.password)
        signer = await asyncio.to_thread(load_signer, config.home, config.password, config.light_keys)
        deployment = Deployment.load(config.deployment)
        chain = await Chain.connect(
            config.rpc_url, deployment, account, budget=config.rpc_budget, journal=config.home / "pending.json"
        )
        self.chain = await stack.enter_async_context(chain)
        self.address = chain.account_address
        self.endpoint = config.endpoint or _endpoint(bound)
        clock = await ChainClock.start(chain)
        offer_terms = await terms(chain, config)
        model_dir, manifest = await prepare(
            config.models, config.home / "model", offer_terms.model, offer_terms.lo, offer_terms.hi
        )
        pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        executor = await asyncio.get_running_loop().run_in_executor(
            pool, _load, config, model_dir, offer_terms.lo, offer_terms.hi
        )
        self.tiers = _tiers(executor)
        self.compute = compute_of(executor)
        check_registered(executor, offer_terms.model)
        if self._wrap is not None:
            executor = self._wrap(executor)
        facts = self._facts(executor, offer_terms, manifest)
        store = await NodeStore.open(config.home / DATABASE)
        self.store = store
        stack.push_async_callback(store.close)
        traces = Traces(config.home / "traces")
        stack.callback(traces.close)
        await self._recover(store, traces)
        origin = await establish(chain, store, config.home / DATABASE)
        sessions = ServedSessions(
            chain,
            store,
            facts,
            config.limits.rpc_patience,
            origin,
            contract_signers=config.allow_contract_signers,
        )
        await sessions.load()
        metrics = NodeMetrics()
        batcher = Batcher(EngineStep(executor, exact=facts.exact), pool, _batch_limits(config))
        services = NodeServices(
            facts=facts,
            domain=chain.efl_domain,
            signer=signer,
            store=store,
            traces=traces,
            batcher=batcher,
            sessions=sessions,
            clock=clock,
            limits=config.limits,
            credit=config.credit_tokens,
            metrics=metrics,
            endpoint=self.endpoint,
            equivocation_watch=EquivocationWatch(chain.efl_domain, EvidenceFolder(config.home / FOLDER)),
        )
        identity = Identity(chain.efl_domain, self.address, signer)
        self.dispatcher = Dispatcher(services, chain, identity)
        self.price = offer_terms.price
        self.epoch_loop = EpochLoop(chain, clock, store, traces, sessions, config.policy, metrics)
        self._gauges(metrics, executor)
        await self._serve(bound, identity, model_dir, manifest)
        self._spawn(batcher.run(), "batcher")
        await ensure_stake(chain, facts.lo, facts.hi, config.stake)
        offer = WantedRegistration(
            facts.model_id,
            facts.lo,
            facts.hi,
            offer_terms.price,
            signer.address,
            facts.shard_root,
            self.endpoint,
        )
        actions = await ensure_registered(chain, offer)
        if actions:
            await wait_for_signer(
                chain, signer.address, 1.5 * deployment.epoch_length, min(2.0, deployment.epoch_length / 20)
            )
        self._spawn(clock.run(config.policy.tick), "clock")
        self._spawn(self.epoch_loop.run(), "epoch_loop")
        self._log.info(
            "serving",
            address=self.address,
            endpoint=self.endpoint,
            layers=f"{facts.lo}:{facts.hi}",
            weight_bytes=executor.weight_bytes,
        )
        if self.tiers is not None and self.tiers.slowdown > 1:
            tiers = self.tiers
            self._log.warning(
                "the layers do not fit in the budget: decoding is slower",
                ram=tiers.ram,
                resident=f"{tiers.resident} of {tiers.layers} layers",
                times_slower=tiers.slowdown,
            )

    def _facts(self, executor: Executor, offer: ServingTerms, manifest: Manifest) -> NodeFacts:
        half = compute_of(executor) == "bfloat16"
        return NodeFacts(
            address=self.address,
            model_id=offer.model.model_id,
            lo=offer.lo,
            hi=offer.hi,
            layers=executor.layers,
            hidden=executor.hidden,
            vocab=executor.vocab,
            shard_root=manifest.shard_root(offer.lo, offer.hi),
            max_positions=min(executor.max_positions, self.config.limits.max_context),
            encoder=executor.whole_texts,
            profile=HALF_PROFILE if half else offer.model.profile,
        )

    async def _recover(self, store: NodeStore, traces: Traces) -> None:
        """Jobs a crash left open are over; what was computed of them is in their traces."""
        counted: Counter[bytes] = Counter()
        for job, session in await store.unfinished():
            positions = await traces.size(job.job_id, IN) // job.in_row
            before = session.billed + counted[job.session_id]
            account = SessionAccount(session.price, session.cumulative, before, self.config.credit_tokens)
            billed = billed_on_crash(positions, job.spec.prompt_tokens, account, emits=not job.spec.embeds)
            counted[job.session_id] += billed
            await store.end_job(job.job_id, "aborted", positions, billed, "interrupted: the node stopped")
            self._log.warning("unfinished job aborted", job=job.job_id, positions=positions)

    def _gauges(self, metrics: NodeMetrics, executor: Executor) -> None:
        dispatcher, weight_bytes = self.dispatcher, executor.weight_bytes
        metrics.gauge("jobs_running", "Jobs open", lambda: dispatcher.running)
        metrics.gauge(
            "positions_waiting", "Positions waiting for the engine", lambda: dispatcher.services.batcher.queued
        )
        metrics.gauge("connections", "Connections others opened", lambda: dispatcher.connections)
        metrics.gauge("neighbours", "Links to other nodes", lambda: dispatcher.neighbours.count)
        metrics.gauge("sessions", "Sessions known", lambda: len(dispatcher.services.sessions))
        metrics.gauge("epoch", "Epoch of the chain", lambda: dispatcher.services.clock.time.epoch)
        metrics.gauge("weight_bytes", "Bytes of weights in memory", lambda: weight_bytes)
        slowdown = self.slowdown
        metrics.gauge("slowdown", "Time per decoded token over that with all layers in memory", lambda: slowdown)

    async def _serve(self, bound: socket.socket, identity: Identity, model_dir: Path, manifest: Manifest) -> None:
        app = make_app(self.dispatcher, identity, model_dir, manifest, self._info)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        # Runs before the runner's clean-up, which would wait for open connections.
        self._stack.push_async_callback(self.dispatcher.close)
        await web.SockSite(runner, bound).start()

    async def _info(self) -> dict[str, Any]:
        services = self.dispatcher.services
        facts = services.facts
        try:
            me = (await services.sessions.route((self.address,)))[0]
            standing: dict[str, Any] = {"standing": me.standing, "trust_ppm": me.trust_ppm, "status": me.status}
        except ChainError:
            standing = {"standing": None, "trust_ppm": None, "status": None}
        return {
            "node": self.address,
            "signer": services.signer.address,
            "endpoint": self.endpoint,
            "model_id": to_hex(facts.model_id),
            "lo": facts.lo,
            "hi": facts.hi,
            "layers": facts.layers,
            "price_per_ktok": self.price,
            "max_positions": facts.max_positions,
            "credit_tokens": services.credit,
            "chain_id": self.chain.chain_id,
            "epoch": services.clock.time.epoch,
            "queue": services.batcher.queued,
            "slowdown": self.slowdown,
            "compute": self.compute,
            "jobs": self.dispatcher.running,
            "draining": self.dispatcher.draining,
            "version": __version__,
            **standing,
        }

    @property
    def slowdown(self) -> float:
        """How much longer a token takes than with all layers in memory, measured at start."""
        return 1.0 if self.tiers is None else self.tiers.slowdown

    def _spawn(self, work: Any, name: str) -> None:
        """A task that lives as long as the node; if it ends by itself, the node has failed."""
        task = asyncio.create_task(work, name=name)

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and self.failed is not None and not self.failed.done():
                error = done.exception() or RuntimeError(f"{name} ended")
                self.failed.set_exception(error)

        task.add_done_callback(ended)

        async def stop() -> None:
            task.cancel()
            await asyncio.wait({task})

        self._stack.push_async_callback(stop)

    def ready(self) -> dict[str, Any]:
        """The ready line."""
        return {"event": "ready", "address": self.address, "endpoint": self.endpoint, "pid": os.getpid()}

    async def drain(self) -> None:
        """Refuse new jobs, finish the running ones, post, settle and, if asked to, leave the registry."""
        limits = self.config.limits
        self._log.info("draining", jobs=self.dispatcher.running)
        aborted = await self.dispatcher.finish_jobs(limits.drain_timeout)
        complete = await self.epoch_loop.drain(limits.duty_timeout)
        if self.config.retire:
            try:
                await self.chain.contracts.node_registry.retire()
            except ChainError as error:
                self._log.error("not retired", code=error.code, reason=error.message)
        self._log.info("drained", aborted=aborted, everything_posted_and_settled=complete)

    async def close(self) -> None:
        """Stop. Whatever is not on chain yet is kept for the next start."""
        await self._stack.aclose()
        if self.failed is not None and self.failed.done() and not self.failed.cancelled():
            self.failed.exception()


def _load(config: NodeConfig, directory: Path, lo: int, hi: int) -> Executor:
    # Importing torch takes seconds and belongs on the engine's thread.
    from efedllm.engine.select import load_executor

    half = config.compute == "bfloat16"
    threads, ram, device = config.threads, config.ram, config.device
    return load_executor(directory, lo, hi, threads=threads, ram=ram, half=half, device=device)


def _tiers(executor: Executor) -> TierReport | None:
    from efedllm.engine.select import tier_report

    return tier_report(executor)


def _endpoint(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _batch_limits(config: NodeConfig) -> BatchLimits:
    limits = config.limits
    return BatchLimits(limits.batch_tokens, limits.batch_jobs, limits.chunk_tokens, limits.starvation_rounds)


async def run_node(config: NodeConfig, executor_wrapper: Wrapper | None = None) -> int:
    """Run a node until SIGTERM or SIGINT, then drain; a second signal stops at once. The exit code.

    Prints the ready line on stdout once it serves. Raises EfedError when it cannot start.
    """
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    app = NodeApp(config, executor_wrapper)
    starting = asyncio.create_task(app.start())
    if not await _unless(starting, stop):
        return 0
    print(json.dumps(app.ready()), flush=True)
    try:
        assert app.failed is not None
        await _unless(app.failed, stop)
        return 0 if await _unless(asyncio.create_task(app.drain()), hurry) else 1
    finally:
        await app.close()


async def _unless(work: asyncio.Future[None], event: asyncio.Event) -> bool:
    """Wait for `work` (True, or its exception) or for `event`, which cancels it (False)."""
    waiting = asyncio.create_task(event.wait())
    try:
        both: list[asyncio.Future[Any]] = [work, waiting]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return True
        if isinstance(work, asyncio.Task):
            work.cancel()
            await asyncio.wait({work})
        return False
    finally:
        waiting.cancel()

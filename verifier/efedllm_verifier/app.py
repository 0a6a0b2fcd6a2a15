"""The verifier process: follows epochs by the chain's clock, audits in the background, sends what `plan` asks for."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from aiohttp import web

from efedllm.chain import keystore
from efedllm.chain.client import Chain
from efedllm.chain.deployment import Deployment
from efedllm.chain.disputes import FOLDER, EvidenceFolder
from efedllm.chain.types import BatchInfo, ChainTime
from efedllm.errors import ChainError, ConfigError
from efedllm.logs import get_logger
from efedllm_verifier.actions import ActionSender, take_seat
from efedllm_verifier.audit import AbstainError, Auditor
from efedllm_verifier.audit_report import AuditTask, NodeAudit
from efedllm_verifier.chain_view import ChainView
from efedllm_verifier.config import VerifierConfig
from efedllm_verifier.engine_cache import EngineCache, check_device, load_shard, warm_up
from efedllm_verifier.equivocation_search import EquivocationSearch
from efedllm_verifier.fetch import FetchLimits, NodeReader
from efedllm_verifier.metrics import Health, VerifierMetrics, serve
from efedllm_verifier.plan import AuditNode, AuditProgress, plan, plan_claims
from efedllm_verifier.prosecutor import Prosecutor
from efedllm_verifier.store import AttestationStore

_HEALTHY_FOR = 60.0
# Share of an epoch after which its batches are posted and the weights for their audit are fetched.
_PREPARE_AT = 0.9


class AuditsNodes(Protocol):
    """What a verifier asks of its auditor; `efedllm_verifier.audit.Auditor` says what each must do and raise."""

    async def audit(self, task: AuditTask) -> NodeAudit: ...

    async def prepare(self, batch: BatchInfo) -> None: ...


AuditorWrapper = Callable[[AuditsNodes], AuditsNodes]


class Verifier:
    """One verifier on one chain. `tick` looks once and acts once; `run` repeats it until `stop`."""

    def __init__(
        self,
        chain: Chain,
        store: AttestationStore,
        auditor: AuditsNodes,
        metrics: VerifierMetrics,
        health: Health,
        config: VerifierConfig,
        log: Any,
        prosecutor: Prosecutor,
    ) -> None:
        self._chain = chain
        self._store = store
        self._auditor = auditor
        self._metrics = metrics
        self._health = health
        self._config = config
        self._log = log
        self._view = ChainView(chain, chain.account_address)
        self._actions = ActionSender(chain, store, metrics, log)
        self._prosecutor = prosecutor
        self._audits: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._preparing: asyncio.Task[None] | None = None
        self._prepared_epoch = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop` is set. A chain that does not answer is waited for; audits end when we do."""
        try:
            while not stop.is_set():
                try:
                    await self.tick()
                    self._health.beat()
                except ChainError as error:
                    self._log.warning("chain unavailable", code=error.code, reason=str(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._config.poll)
        finally:
            await self.cancel_audits()

    async def tick(self) -> ChainTime:
        """Look at the chain once and do what is due. Raises ChainError when the chain cannot be read."""
        time = await self._chain.now()
        self._metrics.epoch.set(time.epoch)
        await self._drop_stale_audits(time.epoch - 1)
        epoch = time.epoch - 1
        if epoch >= 1:
            done, abstained = await self._store.verdicts(epoch)
            audits = dict.fromkeys(abstained, AuditProgress.ABSTAINED) | {
                item.node: AuditProgress.DONE for item in done
            }
            for (of, node), task in self._audits.items():
                if of == epoch and not task.done():
                    audits.setdefault(node, AuditProgress.RUNNING)
            prepared = await self._store.attestation(epoch) is not None
            state = await self._view.epoch_state(epoch, time, audits, prepared)
            for action in plan(state, time, self._config.timing):
                if isinstance(action, AuditNode):
                    assert state.seed is not None
                    self._start_audit(epoch, action.node, state.seed)
                else:
                    await self._actions.do(action)
        if time.fraction >= _PREPARE_AT and self._prepared_epoch < time.epoch:
            self._prepared_epoch = time.epoch
            self._preparing = asyncio.create_task(self._prepare(time.epoch))
        for action in plan_claims(await self._view.unclaimed(time), time):
            await self._actions.do(action)
        # Last: nothing about it is urgent.
        await self._prosecutor.tick(time.epoch)
        return time

    async def cancel_audits(self) -> None:
        """Stop every running audit; none of them has left anything but its report."""
        tasks = [*self._audits.values(), *([self._preparing] if self._preparing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._audits.clear()

    async def wait_audits(self) -> None:
        """Wait until the running audits have ended."""
        await asyncio.gather(*self._audits.values(), return_exceptions=True)

    async def _prepare(self, epoch: int) -> None:
        """Load what the audits of this epoch's work may need. Only a head start: failures show again in the audit."""
        try:
            for batch in {batch.node: batch for batch in await self._chain.batches(epoch)}.values():
                await self._auditor.prepare(batch)
        except (AbstainError, ChainError) as error:
            self._log.info("weights not ready yet", reason=str(error))

    def _start_audit(self, epoch: int, node: str, seed: bytes) -> None:
        running = self._audits.get((epoch, node))
        if running is None or running.done():
            self._audits[epoch, node] = asyncio.create_task(self._audit(epoch, node, seed))

    async def _drop_stale_audits(self, epoch: int) -> None:
        """An audit that its epoch outran cannot be attested any more."""
        for key in [key for key in self._audits if key[0] < epoch]:
            task = self._audits.pop(key)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _audit(self, epoch: int, node: str, seed: bytes) -> None:
        """One node's audit to its record. A dead chain leaves no record: the next tick begins again."""
        log = self._log.bind(epoch=epoch, node=node)
        try:
            rate = await self._chain.audit_rate(epoch, node)
            task = AuditTask(epoch, node, self._view.batches(epoch, node), seed, rate)
            audit = await self._auditor.audit(task)
        except AbstainError as error:
            log.warning("abstained", reason=str(error))
            await self._store.put_abstention(epoch, node, str(error))
            return
        except ChainError as error:
            log.warning("audit postponed", code=error.code, reason=str(error))
            return
        except Exception as error:
            log.error("audit failed", exc_info=error)
            await self._store.put_abstention(epoch, node, f"internal error: {error!r}")
            return
        await self._store.put_verdict(epoch, audit.verdict, audit.report)
        self._metrics.count_audit(audit)
        for leaf in audit.leaves:
            if leaf.code:
                log.warning("leaf failed", code=leaf.code, detail=leaf.detail, hop=leaf.hop, job=leaf.job_id.hex())
        log.info("audited", leaves=len(audit.leaves), verdict=audit.verdict.verdict)
        # The verdict is settled: who answers slowly from here on delays nothing.
        await self._prosecutor.investigate(audit.commits)


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold a home directory for this process. Raises ConfigError "home-locked" when another one has it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "verifier.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                "home-locked", f"Another verifier runs with {home}.", "Stop it, or pass another --home."
            ) from error
        yield


def network_tag(deployment: Deployment, address: str) -> str:
    """Short name of (network, wallet): a chain started afresh must not meet the records of the one before."""
    committee = deployment.address("VerifierCommittee")
    text = f"{deployment.chain_id}|{deployment.genesis}|{committee}|{address}".lower()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def store_path(home: Path, deployment: Deployment, address: str) -> Path:
    """Where the records of this wallet on this network lie."""
    return home / f"verifier-{network_tag(deployment, address)}.sqlite"


@contextlib.asynccontextmanager
async def open_verifier(
    config: VerifierConfig,
    metrics: VerifierMetrics,
    health: Health,
    log: Any,
    auditor_wrapper: AuditorWrapper | None = None,
) -> AsyncIterator[tuple[Verifier, Chain]]:
    """A seated verifier with everything it holds open. `auditor_wrapper` gives what is asked in place of the auditor.

    Raises ConfigError and ChainError, and ModelError for a device that cannot be used.
    """
    if config.device != "cpu":
        await asyncio.to_thread(check_device, config.device)
    deployment = Deployment.load(config.deployment)
    account = keystore.load(config.keystore, config.password)
    tag = network_tag(deployment, str(account.address))
    journal = config.home / f"transactions-{tag}.json"
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(
            await Chain.connect(config.rpc_url, deployment, account, budget=config.rpc_budget, journal=journal)
        )
        loader = partial(load_shard, ram=config.ram, device=config.device)
        engines = EngineCache(config.home, config.models, config.cache_bytes, loader, one=config.ram is not None)
        stack.callback(engines.close)
        warm = asyncio.ensure_future(engines.run(warm_up))
        stack.callback(warm.cancel)
        await take_seat(chain, config.stake, log)
        store = await AttestationStore.open(store_path(config.home, deployment, chain.account_address))
        stack.push_async_callback(store.close)
        # A node may take a twelfth of an epoch for one answer; an audit has a quarter of it in all.
        limits = FetchLimits(total=max(5.0, deployment.epoch_length / 12), memory=deployment.epoch_length / 3)
        reader = await stack.enter_async_context(NodeReader(limits))
        await warm
        auditor: AuditsNodes = Auditor(
            chain, reader, engines, config.home / "reports", chain.account_address, config.fee_ref_tokens
        )
        if auditor_wrapper is not None:
            auditor = auditor_wrapper(auditor)
        search = EquivocationSearch(reader, chain.efl_domain)
        prosecutor = Prosecutor(chain, search, EvidenceFolder(config.home / FOLDER), metrics, log)
        yield Verifier(chain, store, auditor, metrics, health, config, log, prosecutor), chain


async def run_verifier(config: VerifierConfig, stop: asyncio.Event | None = None, ready: TextIO | None = None) -> None:
    """Run until SIGTERM, SIGINT or `stop`; prints the ready line on `ready` (standard output by default).

    Raises ConfigError or ChainError when it cannot start.
    """
    stopping = asyncio.Event() if stop is None else stop
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.add_signal_handler(number, stopping.set)
    log = get_logger("verifier")
    metrics, health = VerifierMetrics(), Health(max(_HEALTHY_FOR, 3 * config.poll))
    runner: web.AppRunner | None = None
    with locked(config.home):
        async with open_verifier(config, metrics, health, log) as (verifier, chain):
            line: dict[str, Any] = {"event": "ready", "address": chain.account_address, "pid": os.getpid()}
            try:
                if config.listen is not None:
                    runner, line["port"] = await serve(metrics, health, config.listen)
                print(json.dumps(line), file=sys.stdout if ready is None else ready, flush=True)
                await verifier.run(stopping)
                log.info("stopped")
            finally:
                if runner is not None:
                    await runner.cleanup()

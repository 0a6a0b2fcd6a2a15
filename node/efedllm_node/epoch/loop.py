"""The loop that follows the chain: posts batches, settles, collects rewards, forgets evidence. Jobs do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from efedllm.chain import Chain, ChainTime
from efedllm.errors import ChainError
from efedllm.logs import get_logger
from efedllm_node.chain_clock import ChainClock
from efedllm_node.compute.trace_files import Traces
from efedllm_node.config import Policy
from efedllm_node.epoch.batch_poster import BatchPoster
from efedllm_node.epoch.rewards import RewardCollector
from efedllm_node.metrics import NodeMetrics
from efedllm_node.payments.sessions import ServedSessions
from efedllm_node.payments.settler import Settler
from efedllm_node.storage.store import NodeStore


class EpochLoop:
    """A duty that fails is repeated at the next tick; every duty is safe to repeat."""

    def __init__(
        self,
        chain: Chain,
        clock: ChainClock,
        store: NodeStore,
        traces: Traces,
        sessions: ServedSessions,
        policy: Policy,
        metrics: NodeMetrics,
    ) -> None:
        self._chain = chain
        self._clock = clock
        self._store = store
        self._traces = traces
        self._sessions = sessions
        self._policy = policy
        self._metrics = metrics
        self._batch_poster = BatchPoster(chain, store, policy, metrics)
        self._settler = Settler(chain, sessions, policy, metrics)
        self._rewards = RewardCollector(chain, store, policy)
        self._pruned = 0
        self._busy = asyncio.Lock()
        self._window: int | None = None
        self._log = get_logger("epoch_loop")

    async def run(self) -> None:
        """Look at the chain once a tick until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(self._policy.tick)

    async def tick(self) -> None:
        """One look."""
        async with self._busy:
            await self._tick()

    async def _tick(self) -> None:
        epoch = self._clock.time.epoch
        if not await self._guarded("time", self._clock.refresh):
            return
        time = self._clock.time
        if time.epoch != epoch:
            self._sessions.forget_nodes()
            self._sessions.sweep(time.timestamp)
        await self._guarded("post", lambda: self._batch_poster.tick(time, False))
        await self._guarded("settle", lambda: self._settler.tick(time, False))
        await self._guarded("rewards", lambda: self._rewards.tick(time))
        if self._pruned < time.epoch and await self._guarded("forget", lambda: self._forget(time)):
            self._pruned = time.epoch

    async def _guarded(self, name: str, duty: Callable[[], Awaitable[Any]]) -> bool:
        try:
            await duty()
        except ChainError as error:
            self._metrics.duty_failures.labels(name).inc()
            self._log.warning("duty put off", duty=name, code=error.code, reason=error.message)
            return False
        return True

    async def drain(self, deadline: float) -> bool:
        """Post and settle everything now. False when `deadline` seconds were not enough."""
        try:
            async with asyncio.timeout(deadline):
                while not await self._drained():  # noqa: ASYNC110 - what is waited for happens on the chain
                    await asyncio.sleep(min(1.0, self._policy.tick))
        except TimeoutError:
            return False
        return True

    async def _drained(self) -> bool:
        async with self._busy:
            return await self._drain_once()

    async def _drain_once(self) -> bool:
        if not await self._guarded("time", self._clock.refresh):
            return False
        time = self._clock.time
        clear: list[bool] = []

        async def note(duty: Awaitable[bool]) -> None:
            clear.append(await duty)

        await self._guarded("post", lambda: note(self._batch_poster.tick(time, True)))
        await self._guarded("settle", lambda: note(self._settler.tick(time, True)))
        return clear == [True, True]

    async def _forget(self, time: ChainTime) -> None:
        """Drop evidence that no verifier may ask for any more."""
        if self._window is None:
            self._window = await self._chain.contracts.commitment_log.challenge_window()
        keep = max(self._window, self._policy.keep_epochs * time.epoch_length)
        while old := await self._store.expired(time.timestamp - keep, time.epoch - self._policy.keep_epochs):
            for job_id in old:
                await self._traces.remove(job_id)
            await self._store.forget(old)

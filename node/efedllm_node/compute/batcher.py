"""Continuous batching: one loop puts the waiting positions of all jobs into one forward pass after the other.

The engine runs on one thread of its own; the event loop plans the passes and delivers the results.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field

import numpy as np

from efedllm.errors import EfedError
from efedllm_node.compute.engine_step import Chunk, EngineJob, EngineStep, Output
from efedllm_node.compute.scheduler import BatchLimits, Waiting, plan_batch
from efedllm_node.compute.work_item import Inputs, WorkSpec


@dataclass
class _BatchJob:
    """A job in the queue. `positions`: how many wait; `rounds`: passes since it was last served."""

    engine: EngineJob
    deliver: Callable[[Output | EfedError], None]
    waiting: deque[Inputs] = field(default_factory=deque)
    positions: int = 0
    rounds: int = 0


class Batcher:
    """Queues the positions of jobs and runs them through the engine. All methods are for the event loop's thread."""

    def __init__(self, step: EngineStep, pool: Pool, limits: BatchLimits) -> None:
        self._step = step
        self._pool = pool
        self._limits = limits
        self._jobs: dict[bytes, _BatchJob] = {}
        self._wake = asyncio.Event()
        self.batches = 0
        self.positions = 0

    @property
    def queued(self) -> int:
        """Positions waiting for a forward pass."""
        return sum(job.positions for job in self._jobs.values())

    def open(self, key: bytes, spec: WorkSpec, deliver: Callable[[Output | EfedError], None]) -> None:
        """Register a job; `deliver` is called on the event loop, in position order, and must not block."""
        self._jobs[key] = _BatchJob(EngineJob(spec), deliver)

    def submit(self, key: bytes, inputs: Inputs) -> None:
        """Queue the next positions of a job: int32 [n], or float32 [n, hidden]."""
        job = self._jobs[key]
        job.waiting.append(inputs)
        job.positions += len(inputs)
        self._wake.set()

    def withdraw(self, key: bytes) -> int:
        """Drop the positions of a job that no forward pass has begun; returns how many."""
        job = self._jobs.get(key)
        if job is None:
            return 0
        dropped = job.positions
        job.waiting.clear()
        job.positions = 0
        return dropped

    def close(self, key: bytes) -> None:
        """Forget a job and its cache. A pass in flight delivers nothing more."""
        self._jobs.pop(key, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            taken = self._take()
            if not taken:
                self._wake.clear()
                continue
            results = await loop.run_in_executor(self._pool, self._step.run, [chunk for _, _, chunk in taken])
            self.batches += 1
            for (key, job, _), result in zip(taken, results, strict=True):
                if self._jobs.get(key) is not job:
                    continue
                if isinstance(result, Output):
                    self.positions += result.n
                job.deliver(result)

    def _take(self) -> list[tuple[bytes, _BatchJob, Chunk]]:
        """The chunks of the next pass, removed from the queue."""
        whole = self._step.whole_texts
        waiting = [Waiting(key, job.positions, job.rounds, whole) for key, job in self._jobs.items() if job.positions]
        shares = plan_batch(waiting, self._limits)
        for item in waiting:
            self._jobs[item.key].rounds += 1
        taken = []
        for share in shares:
            job = self._jobs[share.key]
            job.rounds = 0
            taken.append((share.key, job, Chunk(job.engine, _cut(job.waiting, share.positions))))
            job.positions -= share.positions
        return taken


def _cut(waiting: deque[Inputs], n: int) -> Inputs:
    """The first `n` positions of the queue, removed."""
    parts = []
    while n:
        head = waiting.popleft()
        if len(head) > n:
            waiting.appendleft(head[n:])
            head = head[:n]
        parts.append(head)
        n -= len(head)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

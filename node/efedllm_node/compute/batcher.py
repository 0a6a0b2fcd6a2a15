"""Continuous batching: one loop puts the waiting positions of all jobs into one forward pass after the other.

The engine runs on one thread of its own; the event loop only plans and hands results back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import decode, encode
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.protocol import Sequence as EngineSequence
from efedllm.engine.taps import TapExecutor
from efedllm.errors import EfedError, ModelError
from efedllm.logs import get_logger
from efedllm.sampling.exact import sample_exact
from efedllm.sampling.float import sample
from efedllm_node.compute.scheduler import BatchLimits, Waiting, plan_batch
from efedllm_node.compute.work_item import Inputs, WorkSpec

_States = tuple[npt.NDArray[np.float32], bytes]
"""What a forward pass gives for one chunk: states [n, hidden], and canonical bytes of the taps, if any."""


@dataclass(frozen=True)
class Output:
    """What the engine made of the next `n` positions of a job.

    `inputs`: what went in; `payload`: canonical bytes of what came out; `token`: sampled from the last of them, when
    that position is sampled; `taps`: canonical bytes of their taps, of an exact model.
    """

    n: int
    inputs: Inputs
    payload: bytes
    token: int | None
    taps: bytes = b""


@dataclass
class _Lane:
    spec: WorkSpec
    deliver: Callable[[Output | EfedError], None]
    sequence: EngineSequence | None = None
    waiting: deque[Inputs] = field(default_factory=deque)
    positions: int = 0  # waiting
    rounds: int = 0
    done: int = 0


@dataclass(frozen=True)
class _Chunk:
    key: bytes
    lane: _Lane
    inputs: Inputs


class Batcher:
    """Owns the engine while the node runs. All methods are for the event loop's thread."""

    def __init__(self, executor: Executor, pool: Pool, limits: BatchLimits) -> None:
        self._executor = executor
        self._pool = pool
        self._limits = limits
        self._lanes: dict[bytes, _Lane] = {}
        self._wake = asyncio.Event()
        self._log = get_logger("batcher")
        self.batches = 0
        self.positions = 0

    @property
    def queued(self) -> int:
        """Positions waiting for a forward pass."""
        return sum(lane.positions for lane in self._lanes.values())

    def open(self, key: bytes, spec: WorkSpec, deliver: Callable[[Output | EfedError], None]) -> None:
        """Register a job; `deliver` is called on the event loop, in position order, and must not block."""
        self._lanes[key] = _Lane(spec, deliver)

    def submit(self, key: bytes, inputs: Inputs) -> None:
        """Queue the next positions of a job: int32 [n], or float32 [n, hidden]."""
        lane = self._lanes[key]
        lane.waiting.append(inputs)
        lane.positions += len(inputs)
        self._wake.set()

    def withdraw(self, key: bytes) -> int:
        """Drop what of a job no forward pass has begun; how many positions that were."""
        lane = self._lanes.get(key)
        if lane is None:
            return 0
        dropped = lane.positions
        lane.waiting.clear()
        lane.positions = 0
        return dropped

    def close(self, key: bytes) -> None:
        """Forget a job and its cache. A pass in flight delivers nothing more."""
        self._lanes.pop(key, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            chunks = self._take()
            if not chunks:
                self._wake.clear()
                continue
            results = await loop.run_in_executor(self._pool, self._work, chunks)
            self.batches += 1
            for chunk, result in zip(chunks, results, strict=True):
                if self._lanes.get(chunk.key) is not chunk.lane:
                    continue
                if isinstance(result, Output):
                    chunk.lane.done += result.n
                    self.positions += result.n
                chunk.lane.deliver(result)

    def _take(self) -> list[_Chunk]:
        whole = self._executor.whole_texts
        waiting = [
            Waiting(key, lane.positions, lane.rounds, whole) for key, lane in self._lanes.items() if lane.positions
        ]
        shares = plan_batch(waiting, self._limits)
        for item in waiting:
            self._lanes[item.key].rounds += 1
        chunks = []
        for share in shares:
            lane = self._lanes[share.key]
            lane.rounds = 0
            chunks.append(_Chunk(share.key, lane, _cut(lane.waiting, share.positions)))
            lane.positions -= share.positions
        return chunks

    # --- on the engine's thread ---

    def _work(self, chunks: Sequence[_Chunk]) -> list[Output | EfedError]:
        try:
            states: list[_States | EfedError] = list(self._step(chunks))
        except EfedError as error:
            # One job's bad rows must not fail the others; the engine changed nothing.
            states = [self._alone(chunk) for chunk in chunks] if len(chunks) > 1 else [error]
        except Exception as error:  # noqa: BLE001 - whatever breaks in an engine ends jobs, never the node
            self._log.exception("forward pass failed", jobs=len(chunks))
            states = [_internal(error)] * len(chunks)
        outputs = [self._encode(chunk, state) for chunk, state in zip(chunks, states, strict=True)]
        return self._sample(chunks, outputs)

    def _alone(self, chunk: _Chunk) -> _States | EfedError:
        try:
            return self._step([chunk])[0]
        except EfedError as error:
            return error

    def _step(self, chunks: Sequence[_Chunk]) -> list[_States]:
        items = []
        for chunk in chunks:
            if chunk.lane.sequence is None:
                chunk.lane.sequence = self._executor.new_sequence()
            items.append(StepItem(chunk.lane.sequence, chunk.inputs))
        # A node serves one shard of one model: its jobs are all exact or none is.
        if any(chunk.lane.spec.exact for chunk in chunks):
            tapped = cast(TapExecutor, self._executor).step_with_taps(items)
            return [(result.states, result.taps.tobytes()) for result in tapped]
        return [(states, b"") for states in self._executor.step(items)]

    def _encode(self, chunk: _Chunk, result: _States | EfedError) -> Output | EfedError:
        if isinstance(result, EfedError):
            return result
        states, taps = result
        try:
            return Output(len(chunk.inputs), chunk.inputs, encode(states, chunk.lane.spec.dtype), None, taps)
        except EfedError as error:
            return error

    def _sample(self, chunks: Sequence[_Chunk], outputs: list[Output | EfedError]) -> list[Output | EfedError]:
        """Sample after the last row of each chunk that reaches a sampled position, from the committed bytes."""
        hidden = self._executor.hidden
        chosen: list[tuple[int, int]] = []
        rows = []
        for i, (chunk, output) in enumerate(zip(chunks, outputs, strict=True)):
            spec = chunk.lane.spec
            last = chunk.lane.done + len(chunk.inputs) - 1
            if spec.sample_from is None or last < spec.sample_from or isinstance(output, EfedError):
                continue
            rows.append(decode(output.payload, spec.dtype, hidden)[-1:])
            chosen.append((i, last + 1))
        if not rows:
            return outputs
        for logits, (i, position) in zip(self._logits(rows), chosen, strict=True):
            if isinstance(logits, EfedError):
                outputs[i] = logits
                continue
            output = outputs[i]
            assert isinstance(output, Output)
            try:
                spec = chunks[i].lane.spec
                token = (sample_exact if spec.exact else sample)(logits, spec.sampling, position)
                outputs[i] = replace(output, token=token)
            except EfedError as error:
                outputs[i] = error
        return outputs

    def _logits(self, rows: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32] | EfedError]:
        """Logits [vocab] of each row [1, hidden], or why there are none."""
        try:
            return list(self._executor.logits(np.concatenate(rows)))
        except EfedError as error:
            # One job's row must not fail the others.
            return [self._logits([row])[0] for row in rows] if len(rows) > 1 else [error]
        except Exception as error:  # noqa: BLE001 - as above
            self._log.exception("head failed", jobs=len(rows))
            return [_internal(error)] * len(rows)


def _internal(error: Exception) -> ModelError:
    return ModelError("engine-failed", f"The engine failed: {type(error).__name__}.", "See the node's log.")


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

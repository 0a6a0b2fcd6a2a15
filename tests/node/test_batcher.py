"""The batcher's one thread: what fails for one job of a pass fails for no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efedllm.commitments.canonical import WireDtype
from efedllm.engine.protocol import Float32
from efedllm.engine.shard import ShardEngine
from efedllm.errors import EfedError, ModelError
from efedllm.sampling.float import SamplingSpec
from efedllm_node.compute.batcher import Batcher
from efedllm_node.compute.engine_step import EngineStep, Output
from efedllm_node.compute.scheduler import BatchLimits
from efedllm_node.compute.work_item import WorkSpec

GREEDY = SamplingSpec(0, 0, 1_000_000, bytes(32))
TEXTS = [np.array(ids, np.int32) for ids in ([1, 2, 3], [9, 8, 7], [5, 5, 6])]


class FussyHead:
    """A real engine whose head refuses the rows that end in one of the given last numbers."""

    def __init__(self, engine: ShardEngine, error: Exception) -> None:
        self._engine = engine
        self._error = error
        self.refused: list[bytes] = []
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def logits(self, hidden: Float32) -> Float32:
        self.calls.append(len(hidden))
        if any(row.tobytes() in self.refused for row in hidden):
            raise self._error
        return self._engine.logits(hidden)


async def one_pass(engine: Any) -> list[Output | EfedError]:
    """What each of three jobs gets from one pass over their prompts."""
    with ThreadPoolExecutor(1) as pool:
        batcher = Batcher(EngineStep(engine), pool, BatchLimits(tokens=64, jobs=8, chunk=32, starvation=4))
        results: dict[int, asyncio.Future[Any]] = {i: asyncio.Future() for i in range(len(TEXTS))}
        for i, text in enumerate(TEXTS):
            spec = WorkSpec(dtype=WireDtype.F32, sampling=GREEDY, sample_from=len(text) - 1)
            batcher.open(bytes([i]), spec, results[i].set_result)
            batcher.submit(bytes([i]), text)
        running = asyncio.create_task(batcher.run())
        found = await asyncio.wait_for(asyncio.gather(*results.values()), 20)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert batcher.batches == 1
    return found


@pytest.mark.parametrize("bad", [0, 1, 2])
async def test_a_row_without_logits_ends_its_job_alone(published: Callable[..., Path], bad: int) -> None:
    engine = FussyHead(ShardEngine.load(published("llama"), 0, 8), ModelError("overflow", "Too large."))
    plain = await one_pass(engine)
    assert engine.calls == [3]
    tokens = [output.token for output in plain if isinstance(output, Output)]
    assert len(tokens) == 3
    row = plain[bad]
    assert isinstance(row, Output)
    engine.refused.append(row.payload[-engine.hidden * 4 :])
    found = await one_pass(engine)
    assert isinstance(found[bad], ModelError)
    assert [item.token if isinstance(item, Output) else None for item in found] == [
        None if i == bad else token for i, token in enumerate(tokens)
    ]


async def test_a_broken_head_ends_every_job_of_the_pass(published: Callable[..., Path]) -> None:
    engine = FussyHead(ShardEngine.load(published("llama"), 0, 8), RuntimeError("out of memory"))
    plain = await one_pass(engine)
    assert isinstance(plain[0], Output)
    engine.refused.append(plain[0].payload[-engine.hidden * 4 :])
    engine.calls.clear()
    assert {item.code for item in await one_pass(engine) if isinstance(item, EfedError)} == {"engine-failed"}
    assert engine.calls == [3]

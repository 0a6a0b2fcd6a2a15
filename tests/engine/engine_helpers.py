"""Running several engines as one model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efedllm.engine.protocol import Executor, Float32, Int32, Sequence, StepItem
from efedllm.engine.shard import ShardEngine

FAMILIES = ("llama", "llama-tied", "qwen2", "qwen3", "mistral", "gpt2")


def load_split(directory: Path, parts: int) -> list[ShardEngine]:
    engines = ShardEngine.load(directory, 0, 1).layers
    bounds = [engines * i // parts for i in range(parts + 1)]
    return [ShardEngine.load(directory, lo, hi) for lo, hi in pairwise(bounds)]


def ids(seed: int, count: int, vocab: int = 96) -> Int32:
    return np.random.default_rng(seed).integers(0, vocab, count, dtype=np.int32)


class Pipeline:
    """One token sequence through a chain of engines."""

    def __init__(self, engines: list[ShardEngine]) -> None:
        self.engines: list[ShardEngine] = engines
        self.sequences: list[Sequence] = [engine.new_sequence() for engine in engines]

    def feed(self, tokens: Int32) -> Float32:
        """Logits [n, vocab] of the next positions."""
        data: npt.NDArray[np.int32] | Float32 = tokens
        for engine, sequence in zip(self.engines, self.sequences, strict=True):
            data = run_one(engine, sequence, data)
        return self.engines[-1].logits(data.astype(np.float32, copy=False))

    def greedy(self, prompt: Int32, count: int) -> list[int]:
        tokens: list[int] = []
        logits = self.feed(prompt)
        while True:
            tokens.append(int(logits[-1].argmax()))
            if len(tokens) == count:
                return tokens
            logits = self.feed(np.array(tokens[-1:], dtype=np.int32))


def run_one(engine: Executor, sequence: Sequence, inputs: npt.NDArray[np.int32] | Float32) -> Float32:
    return engine.step([StepItem(sequence, inputs)])[0]

"""Strategies that a node plugs in as its executor. Each changes one thing and needs nothing from production code."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.commitments.hashing import keccak
from efedllm.engine.cache import KVCache
from efedllm.engine.exact.cache import CachedLayer, ExactCache
from efedllm.engine.protocol import Executor, Float32, Sequence, StepItem
from efedllm.errors import ModelError
from efedllm_bench.cheats.wrapper import Held, Wrapped, held

Rows = npt.NDArray[np.float32]
RowEdit = Callable[[int, Rows, Rows], Rows]
"""(first position, residual rows, honest output rows) -> rows to send; [n, hidden] each."""


def counter_normal(seed: bytes, shape: tuple[int, ...]) -> Rows:
    """Standard normal numbers from a hash: the same cheat on every run."""
    generator = np.random.default_rng(int.from_bytes(keccak(seed)[:8]))
    return generator.standard_normal(shape).astype(np.float32)


class Chained(Wrapped):
    """Runs other layers than the registered ones: the ranges of `parts`, one after the other."""

    def __init__(self, inner: Executor, parts: SequenceOf[Executor]) -> None:
        super().__init__(inner)
        self._parts = tuple(parts)

    def new_sequence(self) -> Sequence:
        return Held([part.new_sequence() for part in self._parts] or [self.inner.new_sequence()])

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        out: list[Float32] = []
        for item in batch:
            states = item.inputs
            for part, cache in zip(self._parts, held(item).caches, strict=True):
                states = part.step([StepItem(cache, states)])[0]
            out.append(np.asarray(states, np.float32))
        return out


class PassThrough(Wrapped):
    """Hands on what it reads, as if its layers did nothing."""

    def new_sequence(self) -> Sequence:
        return _Counter()

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        out: list[Float32] = []
        for item in batch:
            assert isinstance(item.sequence, _Counter)
            start, n = item.sequence.length, len(item.inputs)
            where = np.arange(start, start + n, dtype=np.int32)
            ids = item.inputs.astype(np.int32) if self.has_embedding else None
            out.append(np.asarray(item.inputs, np.float32) if ids is None else self.embed(ids, where))
            item.sequence.length = start + n
        return out


class _Counter:
    """A sequence without any cache."""

    nbytes = 0

    def __init__(self) -> None:
        self.length = 0

    def truncate(self, length: int) -> None:
        self.length = length


class EditedOutput(Wrapped):
    """Runs the real layers and then changes what it sends."""

    def __init__(self, inner: Executor, edit: RowEdit) -> None:
        super().__init__(inner)
        self._edit = edit

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        starts = [item.sequence.length for item in batch]
        outputs = self.run(batch)
        return [
            np.ascontiguousarray(self._edit(start, residual(self.inner, item, start), output), np.float32)
            for start, item, output in zip(starts, batch, outputs, strict=True)
        ]


def residual(executor: Executor, item: StepItem, start: int) -> Rows:
    """What the hop adds its update to: its input in hidden space."""
    if not executor.has_embedding:
        return np.asarray(item.inputs, np.float32)
    where = np.arange(start, start + len(item.inputs), dtype=np.int32)
    return executor.embed(item.inputs.astype(np.int32), where)


class EditedIds(Wrapped):
    """Hop 0 that commits to the signed prompt and runs another one."""

    def __init__(self, inner: Executor, edit: Callable[[int, npt.NDArray[np.int32]], npt.NDArray[np.int32]]) -> None:
        super().__init__(inner)
        self._edit = edit

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        changed = [
            StepItem(item.sequence, self._edit(item.sequence.length, item.inputs.astype(np.int32))) for item in batch
        ]
        return self.run(changed)


class Remembered(Wrapped):
    """Sends rows it kept from an earlier job, computing nothing."""

    def __init__(self, inner: Executor, rows: Rows) -> None:
        super().__init__(inner)
        self._rows = rows

    def new_sequence(self) -> Sequence:
        return _Counter()

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        out: list[Float32] = []
        for item in batch:
            assert isinstance(item.sequence, _Counter)
            start, n = item.sequence.length, len(item.inputs)
            out.append(self._rows[np.arange(start, start + n) % len(self._rows)])
            item.sequence.length = start + n
        return out


class Shifted(Wrapped):
    """Sends at each position what belongs to the one before."""

    def new_sequence(self) -> Sequence:
        return Held([self.inner.new_sequence()])

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        real = self.run([StepItem(held(item).caches[0], item.inputs) for item in batch])
        out: list[Float32] = []
        for item, rows in zip(batch, real, strict=True):
            sequence = held(item)
            before = rows[:1] if sequence.last is None else sequence.last
            sequence.last = rows[-1:].copy()
            out.append(np.ascontiguousarray(np.concatenate([before, rows[:-1]])))
        return out


class ChosenTokens(Wrapped):
    """Samples by its own rule: `rule` turns the honest logits of one row into the ones the sampler then sees."""

    def __init__(self, inner: Executor, rule: Callable[[Rows], Rows]) -> None:
        super().__init__(inner)
        self._rule = rule

    def logits(self, hidden: Float32) -> Float32:
        return np.stack([np.asarray(self._rule(row), np.float32) for row in self.inner.logits(hidden)])


class BreaksOff(ChosenTokens):
    """Samples by its own rule for `tokens` tokens, then fails: the job ends before anybody commits to it."""

    def __init__(self, inner: Executor, rule: Callable[[Rows], Rows], tokens: int) -> None:
        super().__init__(inner, rule)
        self._left = tokens

    def logits(self, hidden: Float32) -> Float32:
        if self._left == 0:
            raise ModelError("overflow", "The numbers left the range of float32.")
        self._left -= 1
        return super().logits(hidden)


class Bfloat16(Wrapped):
    """Multiplies in bfloat16, as cheaper hardware does: half of the bytes, a third of the digits."""

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.run(batch)


class OtherCache(Wrapped):
    """Keeps its keys and values in a cache of its own kind."""

    def __init__(self, inner: Executor, make: Callable[[], Sequence]) -> None:
        super().__init__(inner)
        self._make = make

    def new_sequence(self) -> Sequence:
        return self._make()


def _fp8(values: Tensor) -> Tensor:
    return values.to(torch.float8_e4m3fn).float()


class Fp8Cache(KVCache):
    """Keys and values in 8 bits: a quarter of the memory."""

    def append(self, slot: int, key: Tensor, value: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        return super().append(slot, _fp8(key), _fp8(value), offset)


class StaleCache(KVCache):
    """Every fourth generated position keeps the keys and values of the one before it."""

    def append(self, slot: int, key: Tensor, value: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        if key.shape[1] == 1 and self.length and self.length % 4 == 0:
            at = self.length - 1
            key, value = self._keys[slot, :, at : at + 1].clone(), self._values[slot, :, at : at + 1].clone()
        return super().append(slot, key, value, offset)


class Fp8ExactCache(ExactCache):
    """The upper 8 of the 16 bits of keys and values: half of the memory."""

    def append(
        self, slot: int, offset: int, keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor
    ) -> CachedLayer:
        cut = [torch.div(part, 256, rounding_mode="trunc") * 256 for part in (keys, values)]
        return super().append(slot, offset, cut[0], cut[1], key_scales, value_scales)


class StaleExactCache(ExactCache):
    """As StaleCache, in the exact profile."""

    def append(
        self, slot: int, offset: int, keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor
    ) -> CachedLayer:
        if keys.shape[1] == 1 and self.length and self.length % 4 == 0:
            at = slice(self.length - 1, self.length)
            keys, values, key_scales, value_scales = (array[slot, :, at].clone() for array in self._arrays)
        return super().append(slot, offset, keys, values, key_scales, value_scales)


# --- what EditedOutput does to rows ---


def noisy(scale: float) -> RowEdit:
    """Gaussian noise of `scale` times the norm of the hop's update, at every position."""

    def edit(start: int, x: Rows, y: Rows) -> Rows:
        direction = counter_normal(b"noise" + start.to_bytes(4, "big"), y.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        changed = y + direction * (scale * np.linalg.norm(y - x, axis=1, keepdims=True))
        return np.asarray(changed, np.float32)

    return edit


def one_coordinate(scale: float) -> RowEdit:
    """One of the coordinates of every row, by `scale` times the norm of the update."""

    def edit(_start: int, x: Rows, y: Rows) -> Rows:
        changed = y.copy()
        changed[:, 7] += scale * np.linalg.norm(y - x, axis=1)
        return changed

    return edit


def one_position(at: int, scale: float) -> RowEdit:
    """One position of the job only."""

    def edit(start: int, x: Rows, y: Rows) -> Rows:
        changed = y.copy()
        if start <= at < start + len(y):
            changed[at - start] += scale * (y[at - start] - x[at - start])
        return changed

    return edit


def one_ulp(at: int) -> RowEdit:
    """The last bit of one value of the whole job: nothing that is not exact can see it."""

    def edit(start: int, _x: Rows, y: Rows) -> Rows:
        changed = y.copy()
        if start <= at < start + len(y):
            changed[at - start, 0] = np.nextafter(changed[at - start, 0], np.float32(np.inf))
        return changed

    return edit


def outside_largest(kept: int, scale: float) -> RowEdit:
    """Everything but the `kept` largest values of each row, which is what a sketch of the largest values looks at."""

    def edit(start: int, x: Rows, y: Rows) -> Rows:
        changed = y.copy()
        for index, row in enumerate(changed):
            small = np.argsort(-np.abs(row))[kept:]
            wave = counter_normal(b"outside" + (start + index).to_bytes(4, "big"), (len(small),))
            wave *= scale * np.linalg.norm(y[index] - x[index]) / np.linalg.norm(wave)
            # Stay below the smallest value kept, so that the set of the largest does not change.
            bound = np.abs(row[np.argsort(-np.abs(row))[kept - 1]])
            row[small] = np.clip(row[small] + wave, -bound, bound)
        return changed

    return edit


# --- what ChosenTokens does to logits ---


def greedy(row: Rows) -> Rows:
    return np.where(np.arange(len(row)) == int(np.argmax(row)), 0.0, -1e4).astype(np.float32)


def hotter(row: Rows) -> Rows:
    """A temperature 1.5 times the one agreed on."""
    return np.asarray(row / np.float32(1.5), np.float32)


def narrower(row: Rows) -> Rows:
    """Only the three likeliest tokens, whatever top-k and top-p were agreed on."""
    return np.where(row >= np.sort(row)[-3], row, np.float32(-1e4))


def biased(row: Rows) -> Rows:
    """A push for every 16th token, as an advertiser would pay for."""
    return row + np.where(np.arange(len(row)) % 16 == 0, np.float32(2.0), np.float32(0.0))


def own_seed(row: Rows) -> Rows:
    """A draw from the right distribution with a seed of its own."""
    weights = np.exp((row - row.max()).astype(np.float64) / 0.9)
    draw = int.from_bytes(keccak(row.tobytes())[:8]) / 2**64
    chosen = int(np.searchsorted(np.cumsum(weights) / weights.sum(), draw))
    return np.where(np.arange(len(row)) == min(chosen, len(row) - 1), 0.0, -1e4).astype(np.float32)

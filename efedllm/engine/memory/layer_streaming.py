"""Layers that do not all fit in memory: the first ones stay, the others are prepared again for every pass.

A pass over the layers is a cyclic scan. Keeping the most recently used layers would evict each one just before its turn
and keep nothing; keeping a prefix saves its share of the work in every pass. While one layer computes, a thread of this
object prepares the next one, never more than one ahead.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from efedllm.engine.protocol import Executor, StepItem
from efedllm.errors import ModelError
from efedllm.models.tensorfile import TensorFile

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """Bytes. `total`: everything but the interpreter and its libraries. `fixed`: embeddings, norm, head.

    `layers[i]`: what layer i holds once prepared; `building[i]`: what preparing it takes beside that.
    """

    total: int
    fixed: int
    layers: tuple[int, ...]
    building: tuple[int, ...]

    def streaming(self, resident: int) -> int:
        """Most bytes that the layers from `resident` on take: one computes, the next one is prepared."""
        streamed = range(resident, len(self.layers))
        following = [*streamed[1:], *streamed[:1]]
        return max(
            (self.layers[i] + self.layers[j] + self.building[j] for i, j in zip(streamed, following, strict=True)),
            default=max(self.building, default=0),
        )

    def needed(self, resident: int, working: int) -> int:
        """Bytes with `resident` layers kept and `working` bytes of caches and activations."""
        return self._weights[resident] + working

    @cached_property
    def _weights(self) -> tuple[int, ...]:
        """Bytes of weights by the number of layers kept."""
        kept = range(len(self.layers) + 1)
        return tuple(self.fixed + sum(self.layers[:count]) + self.streaming(count) for count in kept)

    def resident(self, working: int) -> int:
        """How many layers stay in memory beside `working` bytes of caches and activations.

        Raises ModelError "ram-exceeded", with the minimum, when not even streaming every layer fits.
        """
        for count in range(len(self.layers), -1, -1):
            if self.needed(count, working) <= self.total:
                return count
        need = min(self.needed(count, working) for count in range(len(self.layers) + 1))
        raise ModelError(
            "ram-exceeded",
            f"{megabytes(self.total)} of memory are too few: two layers, embeddings and head, and "
            f"{megabytes(working)} of caches and activations take {megabytes(need)}.",
            f"Pass --ram {-(-need // 10**6)}MB or more, serve fewer layers, or use shorter contexts.",
        )


@dataclass(frozen=True)
class TierReport:
    """How a shard lies in memory at start. `ram`: the budget in bytes; `slowdown`: time of decoding one token over the
    time with all layers in memory, both measured.
    """

    ram: int
    layers: int
    resident: int
    slowdown: float


class TieredLayers(Generic[T]):
    """The layers of one engine within a budget. Thread-confined like the engine; preparing runs on its own thread."""

    def __init__(self, build: Callable[[int], T], budget: Budget) -> None:
        self._build = build
        self._budget = budget
        self._kept: list[T] = []
        self._resident = 0
        self._ahead: tuple[int, Future[T]] | None = None
        self._thread = ThreadPoolExecutor(1, "layers", initializer=torch.set_num_threads, initargs=(1,))

    @property
    def resident(self) -> int:
        """Layers that stay in memory, as of the last `make_room`."""
        return self._resident

    @property
    def count(self) -> int:
        return len(self._budget.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of weights held at most: fixed, resident and, while streaming, two layers."""
        budget = self._budget
        streamed = sorted(budget.layers[self._resident :], reverse=True)
        return budget.fixed + sum(budget.layers[: self._resident]) + sum(streamed[:2])

    def make_room(self, working: int) -> None:
        """Keep no more layers than fit beside `working` bytes. Raises ModelError "ram-exceeded", changing nothing."""
        self._resident = self._budget.resident(working)
        if len(self._kept) > self._resident:
            del self._kept[self._resident :]
            give_back()
        if self._ahead is not None and self._ahead[0] != len(self._kept):
            self._ahead[1].exception()
            self._ahead = None
            give_back()

    def run(self, use: Callable[[int, T], None]) -> None:
        """Call `use(i, layer)` for every layer in order; it must not keep the layer.

        Raises what preparing a layer raises; the next call begins afresh.
        """
        for index in range(self.count):
            layer = self._take(index)
            if index < self._resident and index == len(self._kept):
                self._kept.append(layer)
            self._look_ahead(index)
            use(index, layer)
            streamed = index >= len(self._kept)
            # Before the next turn, which begins to prepare the layer after next.
            del layer
            if streamed:
                give_back()

    def _take(self, index: int) -> T:
        if index < len(self._kept):
            return self._kept[index]
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index:
            return ahead[1].result()
        return self._build(index)

    def _look_ahead(self, index: int) -> None:
        """Begin to prepare the next layer that is not kept, in the order of the scan."""
        following = index + 1 if index + 1 < self.count else self._resident
        if len(self._kept) <= following < self.count:
            self._ahead = (following, self._thread.submit(self._build, following))


def prepare(path: Path, build: Callable[[TensorFile], T], held: Callable[[T], Sequence[Tensor]]) -> T:
    """`build` from the file at `path`, read ahead; of the file, only the pages that tensors of the result are views of
    stay in memory.
    """
    with torch.inference_mode(), TensorFile(path) as file:
        file.populate()
        layer = build(file)
        file.release([(t.data_ptr(), t.nbytes) for t in held(layer)])
        return layer


def open_tiers(
    layers: range,
    path: Callable[[int], Path],
    build: Callable[[TensorFile, int], T],
    held: Callable[[T], Sequence[Tensor]],
    decode: Callable[[int, T], None],
    *,
    total: int,
    fixed: int,
    working: int,
    temporary: int,
) -> tuple[TieredLayers[T], float]:
    """The tiers of `layers`, and the seconds of one token through all of them from memory.

    Every layer is prepared once and dropped again: what it holds is measured, and a shard with a bad file is refused at
    start. `build(file, index)` and `decode(index, layer)` take the number of a layer in the model; `working`: bytes of
    the smallest step; `temporary`: bytes that preparing takes beside the file and the result. Raises ModelError
    "ram-exceeded".
    """
    sizes: list[int] = []
    building: list[int] = []
    seconds = 0.0
    for index in layers:
        layer = prepare(path(index), lambda file, index=index: build(file, index), held)  # type: ignore[misc]
        sizes.append(sum({t.data_ptr(): t.nbytes for t in held(layer)}.values()))
        building.append(path(index).stat().st_size + temporary)
        seconds += min(_timed(decode, index, layer) for _ in range(3))
        del layer
        give_back()
        # Before the next layer, so that a budget far too small is not overrun by much.
        Budget(total, fixed, tuple(sizes), tuple(building)).resident(working)
    budget = Budget(total, fixed, tuple(sizes), tuple(building))
    first = layers.start

    def again(position: int) -> T:
        index = first + position
        return prepare(path(index), lambda file: build(file, index), held)

    return TieredLayers(again, budget), seconds


def _timed(decode: Callable[[int, T], None], index: int, layer: T) -> float:
    start = time.perf_counter()
    decode(index, layer)
    return time.perf_counter() - start


def slowdown(engine: Executor, tiers: TieredLayers[T], seconds: float) -> tuple[int, float]:
    """Resident layers of an idle engine, and how much longer it takes for a token than `seconds`, at least 1.

    The faster of two tokens; a token before them fills the resident part.
    """
    inputs = (
        np.zeros(1, np.int32) if engine.has_embedding else np.linspace(-1, 1, engine.hidden, dtype=np.float32)[None]
    )
    taken: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        engine.step([StepItem(engine.new_sequence(), inputs)])
        taken.append(time.perf_counter() - start)
    if tiers.resident == tiers.count:
        return tiers.resident, 1.0
    return tiers.resident, round(max(1.0, min(taken[1:]) / seconds), 2)


def check_device(device: str) -> None:
    """Raises ModelError "no-device" unless layers can be run on `device`, "cpu" or "cuda"."""
    if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
        return
    raise ModelError("no-device", f"There is no {device} device here.", "Use the CPU, or check the GPU's driver.")


def megabytes(count: int) -> str:
    """Rounded up, in units of 10^6 bytes."""
    return f"{-(-count // 10**6)} MB"


def give_back() -> None:
    """Return freed memory to the system: the C library keeps what it thinks will be asked for again."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None where the C library is another one."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return trim

"""Bytes of weights per second of the native products, against the memory bandwidth measured in the same run; and with
many tokens (kernels_many.py), products per second against the processor's peak.

All weights lie in one buffer of 8 times the last-level cache that every call goes on reading where the one before it
stopped, so that they are cold. The kernels of a shape take turns in an order that changes each time, since what one
leaves behind slows the next, and so do the plain reads that the bandwidth comes from: what other work leaves of the
memory changes from minute to minute. Time is the thread's processor time, a figure the 10th percentile of its calls.
"""

from __future__ import annotations

import mmap
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from efedllm.engine.exact.products import native_library
from efedllm.kernels.matrix import Scratch, TiledLinear, TiledLinears, TiledMatrix
from efedllm.kernels.native import Library, Variant
from efedllm_bench.memory.run import machine
from efedllm_bench.memory.speed import last_level
from efedllm_bench.speed import kernels_many
from efedllm_bench.speed.timing import tenth, timed

MAPS = (
    ((2048, 256, 256), 2048),
    ((2048,), 2048),
    ((5632, 5632), 2048),
    ((2048,), 5632),
    ((256,), 2048),
)
"""Rows of matrices that are multiplied in one call, and their columns: the calls of a layer of a model of 1.1 billion
parameters (query, key and value; output; gate and up; down), and a matrix of few rows by itself.
"""

TOKENS = (1, 2, 3, 4)
GROUP = 64
_COLD = 8  # times the last-level cache
_READ = 32 << 20
# Rounds that wake the widest units: some processors switch them off after less than a millisecond without wide
# instructions, which decoding always has.
_AWAKE = 20_000
# As int8, nibbles, bfloat16 and float32 alike an ordinary number.
_BYTE = 0x3C


@dataclass(frozen=True)
class Rate:
    """`rows`: of each map of the call; `us`: 10th percentile of a call; `gbps`: bytes of weights over it;
    `of_bandwidth`: of plain reads' in turns.
    """

    rows: tuple[int, ...]
    columns: int
    tokens: int
    kernel: str
    us: float
    gbps: float
    of_bandwidth: float


class ColdWeights:
    """A buffer that is handed out piece by piece, round and round."""

    def __init__(self) -> None:
        self.cache = last_level()
        memory = mmap.mmap(-1, _COLD * self.cache)
        # As the library does for its weights.
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._buffer = torch.frombuffer(memory, dtype=torch.uint8).fill_(_BYTE)
        self._at = 0

    @property
    def nbytes(self) -> int:
        return len(self._buffer)

    def take(self, size: int) -> Tensor:
        """uint8 [size], not read for as long as the buffer is long."""
        if self._at + size > len(self._buffer):
            self._at = 0
        piece = self._buffer[self._at : self._at + size]
        self._at += -(-size // 64) * 64
        return piece


_ONES = torch.ones(4096)
_READS: dict[str, Callable[[Tensor], object]] = {
    "sum of int64": lambda piece: piece.view(torch.int64).sum(),
    "sum of float32": lambda piece: piece.view(torch.float32).sum(),
    "float32 matrix by vector": lambda piece: piece.view(torch.float32).view(-1, 4096) @ _ONES,
}
"""Plain reads; the bandwidth is that of the fastest, beside each shape and number of tokens."""


def run(turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Raises ModelError "no-native-kernels" without them."""
    library = native_library()
    torch.set_num_threads(1)
    say("filling the buffer")
    weights = ColdWeights()
    bandwidths: list[float] = []
    rates: list[Rate] = []
    for rows, columns in MAPS:
        say(f"{' + '.join(map(str, rows))} x {columns}")
        for tokens in TOKENS:
            kernels = dict(_kernels(library, rows, columns, tokens, weights))
            reads: dict[str, list[float]] = {name: [] for name in _READS}
            taken: dict[str, list[float]] = {name: [] for name in kernels}
            for turn in range(turns):
                for name, read in _READS.items():
                    reads[name].append(timed(partial(read, weights.take(_READ))))
                for name in random.Random(turn).sample(list(kernels), len(kernels)):
                    call = kernels[name].prepare()
                    library.peak(library.variants[0], _AWAKE)
                    taken[name].append(timed(call))
            bandwidth = max(_READ / tenth(times) for times in reads.values())
            bandwidths.append(bandwidth)
            for name, times in taken.items():
                best, size = tenth(times), kernels[name].nbytes
                share = round(size / best / bandwidth, 3)
                rates.append(
                    Rate(rows, columns, tokens, name, round(best * 1e6, 1), round(size / best / 1e9, 2), share)
                )
    return {
        "machine": machine(),
        "threads": 1,
        "turns": turns,
        "last_level_cache_bytes": weights.cache,
        "cold_buffer_bytes": weights.nbytes,
        "bandwidth_gbps": round(statistics.median(bandwidths) / 1e9, 2),
        "variants": [v.name.lower() for v in library.variants],
        "least_of_bandwidth": _least(rates, library),
        "call": kernels_many.calls(library, turns),
        "many": kernels_many.run(library, turns, say),
        "rates": [asdict(rate) for rate in rates],
    }


def _least(rates: list[Rate], library: Library) -> dict[str, float]:
    """The worst rate of the fastest variant over M = 1..4, for calls of at least 4 million weights, and of torch."""
    best = library.variants[0].name.lower()
    large = [r for r in rates if sum(r.rows) * r.columns >= 4 << 20]
    names = [f"{kind} {form} {best}" for kind in ("exact", "float") for form in ("int8", "int4")]
    return {n: min(r.of_bandwidth for r in large if r.kernel == n) for n in [*names, "torch float32", "torch bfloat16"]}


@dataclass(frozen=True)
class _Timed:
    """`prepare` gives one call with cold weights; `nbytes` of them."""

    nbytes: int
    prepare: Callable[[], Callable[[], object]]


def _kernels(
    library: Library, rows: tuple[int, ...], columns: int, tokens: int, weights: ColdWeights
) -> Iterator[tuple[str, _Timed]]:
    """Every kernel by its name."""
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    wide = x.double()
    for form, bits in (("int8", 8), ("int4", 4)):
        for variant in library.variants:
            cold = _Cold(library, rows, columns, bits, variant, weights)
            for kind, inputs in (("exact", wide), ("float", x)):
                yield f"{kind} {form} {variant.name.lower()}", _Timed(cold.nbytes, partial(cold.call, inputs))
    for dtype in (torch.float32, torch.bfloat16):
        yield (
            f"torch {str(dtype).removeprefix('torch.')}",
            _Timed(sum(rows) * columns * dtype.itemsize, partial(_of_torch, x.to(dtype), sum(rows), weights)),
        )


def _of_torch(inputs: Tensor, rows: int, weights: ColdWeights) -> Callable[[], Tensor]:
    size = rows * inputs.shape[1] * inputs.itemsize
    return partial(linear, inputs, weights.take(size).view(inputs.dtype).view(rows, inputs.shape[1]))


class _Cold:
    """Maps whose weights are elsewhere in the buffer at every call; multipliers and scales stay where they are."""

    def __init__(
        self,
        library: Library,
        rows: tuple[int, ...],
        columns: int,
        bits: int,
        variant: Variant,
        weights: ColdWeights,
    ) -> None:
        matrices = [_matrix(library, count, columns, bits) for count in rows]
        self.nbytes = sum(t.nbytes for matrix in matrices for t in matrix.held)
        self._sizes = [matrix.tiles.nbytes for matrix in matrices]
        self._weights = weights
        maps = [TiledLinear(matrix, None, None) for matrix in matrices]
        self._maps = TiledLinears(library, maps, scratch=Scratch(), variant=variant)

    def call(self, x: Tensor) -> Callable[[], Tensor]:
        """The products with weights that are not in a cache; of floats where x is float32."""
        for number, size in enumerate(self._sizes):
            self._maps.point_base_at(self._weights.take(size), number)
        return partial(self._maps.floats if x.dtype == torch.float32 else self._maps.exact, x)


def _matrix(library: Library, rows: int, columns: int, bits: int) -> TiledMatrix:
    values = torch.zeros((rows, columns * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8)
    mult = None if bits == 8 else torch.ones(rows, columns // GROUP, dtype=torch.int8)
    group = None if bits == 8 else GROUP
    return TiledMatrix(library, values, columns, bits=bits, group=group, mult=mult, scale=torch.ones(rows))

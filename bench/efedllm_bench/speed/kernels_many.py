"""Exact products of many tokens against what the processor multiplies at most, and what one call costs by itself.

An exact product is int16 by int8 or less. The peak of an instruction set is a loop of its multiplications in registers
alone (`peak.c`), run in turns with the products. Time is the thread's processor time, a figure the 10th percentile of
its turns: other work on the machine only ever adds to it. The calls are whole: they round the activations and scale the
sums too.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from efedllm.kernels.matrix import Scratch, TiledLinear, TiledLinears, TiledMatrix
from efedllm.kernels.native import Library, Variant
from efedllm_bench.speed.timing import tenth, timed

SHAPES = ((1024, 1024), (2048, 2048), (2048, 5632), (5632, 2048), (512, 256), (256, 256), (1408, 256), (256, 704))
"""Rows and columns: of models of about a billion parameters, then of the bundled one."""

TOKENS = (16, 64, 128, 192)
GROUP = 64
# Long enough for wide units to wake up in.
_SPIN = 400_000
_CALLS = 500
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Product:
    """`gmacs`: 10^9 products of int16 by an integer a second; `of_peak`: of the instruction set's in turns with it."""

    rows: int
    columns: int
    tokens: int
    kernel: str
    gmacs: float
    of_peak: float


def run(library: Library, turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The peaks of this machine, the rates of every product, and the least share of the peak at 64 tokens and more."""
    variants = [v for v in library.variants if library.peak(v, 1)]
    _keep_memory()
    peaks: dict[Variant, list[float]] = {v: [] for v in variants}
    products: list[Product] = []
    for shape in SHAPES:
        say(f"{shape[0]} x {shape[1]}, {TOKENS[0]} to {TOKENS[-1]} tokens")
        maps = {(form, v): _maps(library, shape, form, v) for form in ("int8", "int4") for v in variants}
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))
            spins: dict[Variant, list[float]] = {v: [] for v in variants}
            taken: dict[tuple[str, Variant], list[float]] = {key: [] for key in maps}
            for _ in range(turns):
                for (form, v), product in maps.items():
                    spins[v].append(timed(partial(library.peak, v, _SPIN)))
                    taken[form, v].append(timed(partial(product.exact, x)))
            for v in variants:
                peaks[v].append(library.peak(v, _SPIN) / tenth(spins[v]))
            for (form, v), times in taken.items():
                rate = shape[0] * shape[1] * tokens / tenth(times)
                name, share = f"exact {form} {v.name.lower()}", round(rate / peaks[v][-1], 3)
                products.append(Product(*shape, tokens, name, round(rate / 1e9, 1), share))
    large = [p for p in products if p.tokens >= 64 and p.rows * p.columns >= 1 << 20]
    return {
        "peak_gmacs": {v.name.lower(): round(statistics.median(found) / 1e9, 1) for v, found in peaks.items()},
        "least_of_peak": {k: min(p.of_peak for p in large if p.kernel == k) for k in {p.kernel: 0 for p in large}},
        "products": [asdict(p) for p in products],
    }


def _keep_memory() -> None:
    """Lets glibc keep what is freed: in a process that returns it, every output is fresh pages, which cost as much as a
    small product.
    """
    with contextlib.suppress(AttributeError):
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 32 << 20)


def _maps(library: Library, shape: tuple[int, int], form: str, variant: Variant) -> TiledLinears:
    rows, columns = shape
    draw = torch.Generator().manual_seed(rows + columns)
    if form == "int8":
        values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=draw)
        matrix = TiledMatrix(library, values, columns, scale=torch.ones(rows))
    else:
        # As published: each row's largest multiplier is 127, weights about normal around the middle of 16 values.
        mult = torch.randint(60, 128, (rows, columns // GROUP), dtype=torch.int8, generator=draw)
        normal = (
            torch.randn(2, rows, columns // 2, generator=draw).mul_(2.7).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
        )
        packed = normal[0] | normal[1] << 4
        matrix = TiledMatrix(library, packed, columns, bits=4, group=GROUP, mult=mult, scale=torch.ones(rows))
    return TiledLinears(library, [TiledLinear(matrix, None, None)], scratch=Scratch(), variant=variant)


def calls(library: Library, turns: int) -> dict[str, float]:
    """Microseconds of one call with a matrix of one tile and a half: of the C function, and with its tensors."""
    matrix = TiledMatrix(library, torch.zeros(16, 32, dtype=torch.int8), 32, scale=torch.ones(16))
    maps = TiledLinears(library, [TiledLinear(matrix, None, None)])
    x, y = torch.ones(1, 32, dtype=torch.float64), torch.empty(1, 16, dtype=torch.float64)
    work = torch.empty(1 << 16, dtype=torch.uint8)
    arguments = (maps._at, 1, x.data_ptr(), 32, 1, y.data_ptr(), 16, work.data_ptr(), maps.variant, 1)
    with torch.inference_mode():
        return {
            "c_function_us": _each(lambda: library.exact(*arguments), turns),
            "with_tensors_us": _each(lambda: maps.exact(x), turns),
        }


def _each(call: Callable[[], Tensor | None], turns: int) -> float:
    taken = []
    for _ in range(turns):
        start = time.thread_time()
        for _ in range(_CALLS):
            call()
        taken.append((time.thread_time() - start) / _CALLS)
    return round(tenth(taken) * 1e6, 2)

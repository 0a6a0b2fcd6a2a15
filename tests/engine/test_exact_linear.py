"""Linear maps of the exact profile: any mixture of forms gives the specified numbers from every kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.engine.exact.arithmetic import quantize
from efedllm.engine.exact.linear import Linears
from efedllm.engine.exact.products import Kernel, exact_kernels
from efedllm.models.linear import PublishedLinear, PublishedMatrix
from efedllm.models.packing import group_count, pack
from efedllm.models.tensors import TensorDtype

DTYPES: dict[int, TensorDtype] = {2: "int2", 3: "int3", 4: "int4", 5: "int5", 6: "int6"}
FORMS = ("dense", "lowrank", "packed", "packed+")


def int8(rng: np.random.Generator, rows: int, columns: int) -> PublishedMatrix:
    values = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    return PublishedMatrix(values, "int8", columns, rng.random(rows).astype(np.float32))


def packed(rng: np.random.Generator, rows: int, columns: int, bits: int, group: int, extreme: bool) -> PublishedMatrix:
    half, groups = 1 << (bits - 1), group_count(columns, group)
    w = np.full((rows, columns), -half) if extreme else rng.integers(-half, half, (rows, columns))
    m = np.full((rows, groups), -128) if extreme else rng.integers(-128, 128, (rows, groups))
    scales, dtype = rng.random(rows).astype(np.float32), DTYPES[bits]
    return PublishedMatrix(pack(w.astype(np.int8), bits), dtype, columns, scales, m.astype(np.int8), group)


def published(rng: np.random.Generator, form: str, columns: int, extreme: bool) -> PublishedLinear:
    rows, rank, bits = (int(rng.integers(low, high)) for low, high in ((1, 40), (1, 12), (2, 7)))
    bias = rng.normal(size=rows).astype(np.float32) if rng.random() < 0.5 else None
    u = v = None
    if form in ("lowrank", "packed+"):
        u, v = int8(rng, rows, rank), int8(rng, rank, columns)
    if form == "dense":
        return PublishedLinear(int8(rng, rows, columns), bias=bias)
    if form == "lowrank":
        return PublishedLinear(None, u, v, bias)
    return PublishedLinear(packed(rng, rows, columns, bits, int(rng.integers(1, 2 * columns + 1)), extreme), u, v, bias)


@given(
    forms=st.lists(st.sampled_from(FORMS), min_size=1, max_size=4),
    columns=st.sampled_from([1, 2, 9, 64, 250, 1025]),
    tokens=st.sampled_from([1, 2, 3, 33]),
    seed=st.integers(0, 1 << 30),
    extreme=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_kernel_gives_the_same_maps(
    forms: list[str], columns: int, tokens: int, seed: int, extreme: bool
) -> None:
    rng = np.random.default_rng(seed)
    maps = [published(rng, form, columns, extreme) for form in forms]
    x = torch.from_numpy(rng.choice([-1.0, 1.0], (tokens, columns)) if extreme else rng.normal(size=(tokens, columns)))
    want = torch.cat([alone(p, x) for p in maps], dim=1)
    for kernel in exact_kernels():
        assert torch.equal(Linears(maps, kernel)(x), want), kernel


def alone(p: PublishedLinear, x: torch.Tensor) -> torch.Tensor:
    """One map after the specification, in int64."""
    y = torch.zeros(len(x), p.rows, dtype=torch.float64)
    if p.base is not None:
        y = rows(p.base, x)
    if p.u is not None and p.v is not None:
        y = y + rows(p.u, rows(p.v, x))
    return y if p.bias is None else y + torch.from_numpy(p.bias).double()


def rows(matrix: PublishedMatrix, x: torch.Tensor) -> torch.Tensor:
    q, scale = quantize(x)
    scales = torch.ones(matrix.rows) if matrix.scales is None else torch.from_numpy(matrix.scales)
    return (q.long() @ integers(matrix).t()).double() * scale * scales.double()


def integers(p: PublishedMatrix) -> torch.Tensor:
    if p.multipliers is None:
        return torch.from_numpy(p.values).long()
    numbers = [int.from_bytes(row.tobytes(), "little") for row in p.values]
    half = 1 << (p.bits - 1)
    w = torch.tensor([[(n >> p.bits * k) % (2 * half) - half for k in range(p.columns)] for n in numbers])
    return w * torch.from_numpy(p.multipliers).long()[:, torch.arange(p.columns) // p.group]


@pytest.mark.parametrize("kernel", exact_kernels())
def test_the_longest_rows_of_the_widest_integers_are_exact(kernel: Kernel) -> None:
    """2^16 columns, 6 bits, multiplier -128, activations at their limit: 2^43."""
    rng = np.random.default_rng(1)
    p = PublishedLinear(packed(rng, 3, 1 << 16, 6, 1 << 14, extreme=True))
    x = torch.ones(2, 1 << 16, dtype=torch.float64)
    assert p.base is not None
    assert p.base.scales is not None
    want = float((1 << 16) * 32 * 128 * 32639) / 32639 * torch.from_numpy(p.base.scales).double()
    torch.testing.assert_close(Linears([p], kernel)(x)[0], want, rtol=1e-15, atol=0)


def test_maps_that_share_a_factor_hold_it_once() -> None:
    rng = np.random.default_rng(2)
    v = int8(rng, 6, 64)
    maps = [PublishedLinear(None, int8(rng, count, 6), v) for count in (20, 7, 9)]
    for kernel in exact_kernels():
        linears = Linears(maps, kernel)
        x = torch.from_numpy(rng.normal(size=(4, 64)))
        assert torch.equal(linears(x), torch.cat([alone(p, x) for p in maps], dim=1)), kernel
        apart = [PublishedLinear(None, p.u, replace(v, values=v.values.copy())) for p in maps]
        held, more = ({t.data_ptr(): t.nbytes for t in made.held} for made in (linears, Linears(apart, kernel)))
        assert sum(held.values()) + 2 * v.values.nbytes <= sum(more.values())

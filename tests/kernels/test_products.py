"""The native products against int64 and float64, on every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efedllm.engine.exact.arithmetic import quantize
from efedllm.engine.exact.products import Q_MAX
from efedllm.kernels.matrix import Scratch, TiledLinear, TiledLinears, TiledMatrix
from efedllm.kernels.native import Library, Variant, library
from efedllm.models.packing import pack

BITS = (2, 3, 4, 5, 6, 8)
Int64 = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def native() -> Library:
    found = library()
    if found is None:
        pytest.skip("no native kernels in this installation")
    return found


def draw(seed: int, rows: int, columns: int, bits: int, group: int, *, extreme: bool) -> tuple[Any, Int64, Tensor]:
    """Integers int8 [rows, columns], multipliers int64 [rows, groups] (all 1 for 8 bits), scales float32 [rows]."""
    rng = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    groups = 1 if bits == 8 else -(-columns // group)
    if extreme:
        w = rng.choice(np.array([-half, half - 1]), (rows, columns))
        mult = rng.choice(np.array([-128, 127]), (rows, groups))
    else:
        w = rng.integers(-half, half, (rows, columns))
        mult = rng.integers(-128, 128, (rows, groups))
    if bits == 8:
        mult = np.ones((rows, 1), dtype=np.int64)
    return w.astype(np.int8), mult, torch.from_numpy(rng.uniform(0.001, 1, rows).astype(np.float32))


def tiled(native: Library, w: Any, mult: Int64, scale: Tensor | None, bits: int, group: int) -> TiledMatrix:
    if bits == 8:
        return TiledMatrix(native, torch.from_numpy(w), w.shape[1], scale=scale)
    multipliers = torch.from_numpy(mult.astype(np.int8))
    packed = torch.from_numpy(pack(w, bits))
    return TiledMatrix(native, packed, w.shape[1], bits=bits, group=group, mult=multipliers, scale=scale)


def integers(w: Any, mult: Int64, bits: int, group: int) -> Int64:
    span = w.shape[1] if bits == 8 else group
    values: Int64 = w.astype(np.int64) * np.repeat(mult, span, axis=1)[:, : w.shape[1]]
    return values


@given(
    tokens=st.integers(1, 37),
    rows=st.sampled_from([1, 2, 15, 16, 17, 33, 70]),
    columns=st.sampled_from([1, 2, 3, 5, 8, 31, 32, 33, 64, 255, 256, 257, 600, 1025]),
    bits=st.sampled_from(BITS),
    group=st.integers(1, 300),
    seed=st.integers(0, 1 << 30),
    extreme=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_every_instruction_set_gives_the_sums_of_int64(
    native: Library, tokens: int, rows: int, columns: int, bits: int, group: int, seed: int, extreme: bool
) -> None:
    w, mult, _ = draw(seed, rows, columns, bits, group, extreme=extreme)
    rng = np.random.default_rng(seed + 1)
    if extreme:
        q = rng.choice(np.array([-Q_MAX, -129, -128, 127, 128, Q_MAX]), (tokens, columns))
    else:
        q = rng.integers(-Q_MAX, Q_MAX, (tokens, columns), endpoint=True)
    matrix = tiled(native, w, mult, None, bits, group)
    values = integers(w, mult, bits, group)
    want = torch.from_numpy(q @ values.T).double()
    assert torch.equal(matrix.lookup(torch.arange(rows)).double(), torch.from_numpy(values).double())
    for variant in native.variants:
        maps = TiledLinears(native, [TiledLinear(matrix, None, None)], variant=variant)
        assert torch.equal(maps.times(torch.from_numpy(q.astype(np.int16))), want), variant
        expanded = matrix.expand(0, matrix.panels, variant, Scratch())
        assert torch.equal(expanded.double(), torch.from_numpy(values).double()), variant


@pytest.mark.parametrize(("sign", "tokens"), [(1, 2), (-1, 2), (-1, 26)])
def test_the_longest_rows_of_extremes_are_exact(native: Library, sign: int, tokens: int) -> None:
    """65536 columns, every product as large as it gets and of one sign."""
    columns = 1 << 16
    q = torch.full((tokens, columns), sign * Q_MAX, dtype=torch.int16)
    for bits, group in ((8, columns), (6, 1 << 14), (6, 32), (4, 64)):
        half = 1 << (bits - 1)
        w = np.full((17, columns), -half, dtype=np.int8)
        mult = np.full((17, -(-columns // group)), 1 if bits == 8 else -128)
        matrix = tiled(native, w, mult, None, bits, group)
        want = float(-half * (1 if bits == 8 else -128) * sign * Q_MAX * columns)
        for variant in native.variants:
            got = TiledLinears(native, [TiledLinear(matrix, None, None)], variant=variant).times(q)
            assert torch.equal(got, torch.full((tokens, 17), want, dtype=torch.float64)), (variant, bits, group)


def random_maps(
    native: Library, columns: int, seed: int, bits: int
) -> tuple[list[TiledLinear], list[list[tuple[Int64, Tensor]]]]:
    """Three maps of one input: of `bits` with factors and a bias, factors that share v with them, and int8 alone.

    Beside them the integers and scales of each map's base, v, u.
    """
    parts = {}
    shapes = (
        ("a", 40, columns, bits, columns if bits == 8 else 64),
        ("v", 8, columns, 8, columns),
        ("u", 40, 8, 8, 8),
        ("u2", 21, 8, 8, 8),
        ("c", 17, columns, 8, columns),
    )
    for place, (name, rows, cols, width, group) in enumerate(shapes):
        w, mult, scale = draw(seed + place, rows, cols, width, group, extreme=False)
        parts[name] = (tiled(native, w, mult, scale, width, group), (integers(w, mult, width, group), scale))
    bias = torch.linspace(-1, 1, 40)
    maps = [
        TiledLinear(parts["a"][0], parts["v"][0], parts["u"][0], bias),
        TiledLinear(None, parts["v"][0], parts["u2"][0]),
        TiledLinear(parts["c"][0], None, None),
    ]
    names = [["a", "v", "u"], ["v", "u2"], ["c"]]
    return maps, [[parts[name][1] for name in group] for group in names]


def by_definition(x: Tensor, maps: list[TiledLinear], parts: list[list[tuple[Int64, Tensor]]], rounded: bool) -> Tensor:
    """docs/exact.md in torch; without rounding of activations when not `rounded`."""

    def product(values: Tensor, part: tuple[Int64, Tensor]) -> Tensor:
        weight, scale = torch.from_numpy(part[0]).double(), part[1].double()
        if not rounded:
            return values @ (weight * scale[:, None]).T
        q, token = quantize(values)
        return (q @ weight.T).mul_(token).mul_(scale)

    outputs = []
    for m, own in zip(maps, parts, strict=True):
        y = product(x, own[0]) if m.base is not None else None
        if m.u is not None:
            low = product(product(x, own[-2]), own[-1])
            y = low if y is None else y + low
        assert y is not None
        outputs.append(y if m.bias is None else y + m.bias.double())
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_extreme_weights_and_blocks_of_several_panels_are_exact(native: Library, bits: int) -> None:
    """Where the sum of few products reaches the end of an int32, beside rows where that of many does not."""
    rows, columns, tokens = 7 * 16, 700, 40
    rng = np.random.default_rng(bits)
    half = 1 << (bits - 1)
    w = rng.integers(-half, half, (rows, columns))
    mult = rng.integers(-128, 128, (rows, 1 if bits == 8 else -(-columns // 64)))
    for first, value in ((3, -half), (40, half - 1), (99, -half)):
        w[first], mult[first] = value, -128
    w[70, ::2], w[70, 1::2], mult[70] = -half, half - 1, 127
    if bits == 8:
        mult[:] = 1
    w = w.astype(np.int8)
    q = np.where(rng.random((tokens, columns)) < 0.5, -Q_MAX, Q_MAX)
    q[0], q[1] = Q_MAX, -Q_MAX
    want = torch.from_numpy(q @ integers(w, mult, bits, 64).T).double()
    maps = [TiledLinear(tiled(native, w, mult, None, bits, 64), None, None)]
    for variant in native.variants:
        for n in (1, 4, tokens):
            got = TiledLinears(native, maps, variant=variant).times(torch.from_numpy(q[:n].astype(np.int16)))
            assert torch.equal(got, want[:n]), (variant, n)


@given(
    exponent=st.integers(-60, 60),
    largest=st.floats(1, 2, exclude_max=True),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=60, deadline=None)
def test_activations_between_two_integers_are_rounded_as_quotients(
    native: Library, exponent: int, largest: float, seed: int
) -> None:
    """Activations whose quotient by their scale is half an integer, or a few units in the last place beside it."""
    columns = 150
    rng = np.random.default_rng(seed)
    most = largest * 2.0**exponent
    scale = most / Q_MAX
    x = (rng.integers(-Q_MAX, Q_MAX, columns) + 0.5) * scale
    for _ in range(2):
        x = np.nextafter(x, rng.choice(np.array([-np.inf, 0, np.inf]), columns))
    x[rng.integers(columns)] = most
    wanted, token = quantize(torch.from_numpy(x)[None])
    unit = TiledMatrix(native, torch.eye(columns, dtype=torch.int8), columns)
    for variant in native.variants:
        got = TiledLinears(native, [TiledLinear(unit, None, None)], variant=variant).exact(torch.from_numpy(x)[None])
        assert torch.equal(got, wanted * token), variant


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 16, 17, 50, 300])
@pytest.mark.parametrize("columns", [64, 100, 333])
@pytest.mark.parametrize("bits", BITS)
def test_whole_maps_have_the_bits_of_the_specification(native: Library, tokens: int, columns: int, bits: int) -> None:
    maps, parts = random_maps(native, columns, tokens, bits)
    x = torch.randn(tokens, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))
    x[0] *= 1e-300
    want = by_definition(x, maps, parts, rounded=True)
    for variant in native.variants:
        assert torch.equal(TiledLinears(native, maps, variant=variant).exact(x), want), variant


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 33])
@pytest.mark.parametrize("bits", BITS)
def test_float_maps_are_those_of_float64_but_for_rounding(native: Library, tokens: int, bits: int) -> None:
    maps, parts = random_maps(native, 333, tokens, bits)
    x = torch.randn(tokens, 333, generator=torch.Generator().manual_seed(tokens))
    want = by_definition(x.double(), maps, parts, rounded=False)
    for variant in native.variants:
        got = TiledLinears(native, maps, variant=variant).floats(x).double()
        error = (got - want).norm() / want.norm()
        assert 0 < error < 5e-7, variant


def test_two_threads_give_the_same_bytes(native: Library) -> None:
    rng = np.random.default_rng(3)
    w = rng.integers(-128, 128, (2000, 1100)).astype(np.int8)
    matrix = tiled(native, w, np.ones((2000, 1), dtype=np.int64), torch.ones(2000), 8, 1100)
    for tokens in (4, 40):
        x = torch.randn(tokens, 1100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        alone, shared = (TiledLinears(native, [TiledLinear(matrix, None, None)], threads=n) for n in (1, 3))
        assert torch.equal(alone.exact(x), shared.exact(x))
        assert torch.equal(alone.floats(x.float()), shared.floats(x.float()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_comes_out_as_none(native: Library, value: float) -> None:
    maps, _ = random_maps(native, 100, 5, 4)
    x = torch.ones(3, 100, dtype=torch.float64)
    x[1, 37] = value
    for variant in native.variants:
        y = TiledLinears(native, maps, variant=variant).exact(x)
        assert torch.isnan(y[1]).all()
        assert torch.isfinite(y[[0, 2]]).all()


def test_it_takes_the_memory_of_its_published_form(native: Library) -> None:
    for bits in BITS:
        w, mult, scale = draw(bits, 128, 640, bits, 64, extreme=False)
        held = sum(t.nbytes for t in tiled(native, w, mult, scale, bits, 64).held)
        assert held == 128 * 640 * bits // 8 + 128 * 4 + (0 if bits == 8 else mult.size)


def test_no_tokens_give_no_rows(native: Library) -> None:
    map_ = TiledLinear(TiledMatrix(native, torch.ones(20, 70, dtype=torch.int8), 70), None, None)
    for variant in native.variants:
        maps = TiledLinears(native, [map_, map_], variant=variant)
        assert maps.exact(torch.zeros(0, 70, dtype=torch.float64)).shape == (0, 40)
        assert maps.floats(torch.zeros(0, 70)).shape == (0, 40)
        assert maps.times(torch.zeros(0, 70, dtype=torch.int16)).shape == (0, 20)


def test_what_does_not_fit_is_refused_before_anything_is_read(native: Library) -> None:
    rows = torch.zeros(16, 32, dtype=torch.int8)
    for wrong in (
        {"rows": rows, "columns": 33},
        {"rows": rows.short(), "columns": 32},
        {"rows": rows, "columns": 32, "bits": 4},
        {"rows": rows, "columns": 32, "scale": torch.ones(15)},
        {"rows": rows, "columns": 32, "group": 8},
        {"rows": rows, "columns": 32, "group": 8, "mult": torch.ones(16, 3, dtype=torch.int8)},
        {"rows": rows, "columns": 32, "group": 30, "mult": torch.ones(16, 2, dtype=torch.int8)},
    ):
        with pytest.raises(ValueError, match=r"no matrix|multipliers"):
            TiledMatrix(native, **wrong)  # type: ignore[arg-type]
    matrix = TiledMatrix(native, rows, 32)
    maps = TiledLinears(native, [TiledLinear(matrix, None, None)])
    for bad in (torch.zeros(2, 31), torch.zeros(2, 32).double(), torch.zeros(32)):
        with pytest.raises(ValueError, match="expected"):
            maps.floats(bad)
    for ids in ([16], [-1]):
        with pytest.raises(ValueError, match="row ids"):
            matrix.lookup(torch.tensor(ids))
    with pytest.raises(ValueError, match=r"shapes|fit together"):
        TiledLinear(matrix, matrix, matrix)
    missing = next(v for v in Variant if v not in native.variants)
    with pytest.raises(ValueError, match="variant"):
        TiledLinears(native, [TiledLinear(matrix, None, None)], variant=missing)

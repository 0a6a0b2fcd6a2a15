"""The parts of the exact arithmetic, against integers, decimals and float64 libraries."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from efedllm.engine.exact.arithmetic import (
    EXP2_COEFFICIENTS,
    GELU_CUBE,
    GELU_SLOPE,
    LOG2_E,
    _sqrt,
    canonical,
    exp2,
    gelu_tanh,
    layer_norm,
    quantize,
    rms_norm,
    silu,
)
from efedllm.engine.exact.packed import PackedIntMatrix
from efedllm.engine.exact.products import Q_MAX, IntMatrix, exact_kernels
from efedllm.engine.exact.rope import Rotation, frequencies, make_tables, rotate
from efedllm.errors import ModelError
from efedllm.models.linear import PublishedMatrix
from efedllm.models.packing import Int8, UInt8, group_count, pack, row_bytes

KERNELS = exact_kernels()


@given(
    tokens=st.integers(1, 70),
    rows=st.integers(1, 40),
    columns=st.sampled_from([1, 2, 7, 8, 9, 64, 1024, 1025, 3000]),
    seed=st.integers(0, 1 << 30),
    extreme=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_kernel_gives_the_sums_of_int64(tokens: int, rows: int, columns: int, seed: int, extreme: bool) -> None:
    rng = np.random.default_rng(seed)
    if extreme:
        q = rng.choice(np.array([-Q_MAX, -129, -128, -1, 127, 128, Q_MAX]), (tokens, columns))
        w = rng.choice(np.array([-128, -127, 127]), (rows, columns))
    else:
        q = rng.integers(-Q_MAX, Q_MAX, (tokens, columns), endpoint=True)
        w = rng.integers(-128, 127, (rows, columns), endpoint=True)
    want = torch.from_numpy(q.astype(np.int64) @ w.astype(np.int64).T).double()
    for kernel in KERNELS:
        matrix = IntMatrix(torch.from_numpy(w.astype(np.int8)), kernel)
        assert torch.equal(matrix.times(torch.from_numpy(q).double()), want), kernel


@given(
    tokens=st.integers(1, 40),
    shapes=st.lists(
        st.tuples(st.integers(1, 20), st.integers(2, 6), st.sampled_from([1, 3, 8, 64, 5000])), min_size=1, max_size=3
    ),
    columns=st.sampled_from([1, 2, 7, 8, 9, 64, 1025, 3000]),
    seed=st.integers(0, 1 << 30),
    extreme=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_kernel_gives_the_sums_of_packed_rows(
    tokens: int, shapes: list[tuple[int, int, int]], columns: int, seed: int, extreme: bool
) -> None:
    """Matrices of several widths and groups below each other."""
    rng = np.random.default_rng(seed)
    q = (
        rng.choice([-Q_MAX, Q_MAX], (tokens, columns))
        if extreme
        else rng.integers(-Q_MAX, Q_MAX + 1, (tokens, columns))
    )
    matrices: list[PublishedMatrix] = []
    want: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for rows, bits, group in shapes:
        half, groups = 1 << (bits - 1), group_count(columns, group)
        w = rng.choice([-half, half - 1], (rows, columns)) if extreme else rng.integers(-half, half, (rows, columns))
        m = rng.choice([-128, 127], (rows, groups)) if extreme else rng.integers(-128, 128, (rows, groups))
        matrices.append(packed_matrix(pack(w.astype(np.int8), bits), m.astype(np.int8), columns, bits, group))
        want.append(q @ (w * m[:, np.arange(columns) // group]).T)
    for kernel in KERNELS:
        got = PackedIntMatrix(matrices, kernel).times(torch.from_numpy(q).double())
        assert torch.equal(got, torch.from_numpy(np.concatenate(want, axis=1)).double()), kernel


def packed_matrix(data: UInt8, mult: Int8, columns: int, bits: int, group: int) -> PublishedMatrix:
    """Packed integers with scales of 1."""
    dtype: Any = f"int{bits}"
    return PublishedMatrix(data, dtype, columns, np.ones(len(data), np.float32), mult, group)


def test_a_row_too_long_for_its_sums_is_refused() -> None:
    long = (1 << 16) + 1
    packed = packed_matrix(np.zeros((1, row_bytes(long, 2)), np.uint8), np.ones((1, 1), np.int8), long, 2, long)
    for kernel in KERNELS:
        with pytest.raises(ModelError) as caught:
            IntMatrix(torch.zeros(1, long, dtype=torch.int8), kernel)
        assert caught.value.code == "unsupported-model"
        with pytest.raises(ModelError) as caught:
            PackedIntMatrix([packed], kernel)
        assert caught.value.code == "unsupported-model"


def test_the_constants_are_the_nearest_to_their_definitions() -> None:
    with localcontext() as context:
        context.prec = 50
        log2 = Decimal(2).ln()
        assert float(1 / log2) == LOG2_E
        for k, coefficient in enumerate(EXP2_COEFFICIENTS):
            assert np.float32(float(log2**k / math.factorial(k))) == coefficient


def test_powers_of_two_are_close_and_exact_at_whole_numbers() -> None:
    z = torch.linspace(-119, 0, 100_001, dtype=torch.float32)
    want = torch.exp2(z.double())
    assert float(((exp2(z.clone()).double() - want) / want).abs().max()) < 4e-7
    whole = torch.arange(-120, 1, dtype=torch.float32)
    assert torch.equal(exp2(whole.clone()).double(), torch.exp2(whole.double()))
    assert exp2(torch.tensor([-torch.inf, -1e30])).tolist() == [2.0**-120] * 2


def test_gelu_is_close() -> None:
    x = torch.linspace(-30, 30, 50_001, dtype=torch.float64)
    assert float((gelu_tanh(x) - torch.nn.functional.gelu(x, approximate="tanh")).abs().max()) < 3e-6
    assert gelu_tanh(torch.tensor([0.0, 1e150, -1e10], dtype=torch.float64)).tolist() == [0.0, 1e150, -1e10 * 2.0**-120]
    with localcontext() as context:
        context.prec = 50
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582")
        assert (float(Decimal("0.044715")), float(2 * (2 / pi).sqrt())) == (GELU_CUBE, GELU_SLOPE)


def test_silu_is_close() -> None:
    x = torch.linspace(-90, 90, 50_001, dtype=torch.float64)
    got = silu(x)
    assert float((got - x * torch.sigmoid(x)).abs().max()) < 1e-5
    assert silu(torch.tensor([0.0, 1e30, -1e30], dtype=torch.float64)).tolist() == [0.0, 1e30, -(2.0**-120) * 1e30]


@given(values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40))
def test_quantising_keeps_the_range_and_half_a_step(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    q, scale = quantize(x)
    assert float(q.abs().max()) <= Q_MAX
    assert torch.equal(q, q.round())
    assert float((q * scale - x).abs().max()) <= 0.5000001 * float(scale)


def test_a_row_of_zeros_stays_zero() -> None:
    q, scale = quantize(torch.zeros(2, 5, dtype=torch.float64))
    assert not q.any()
    assert bool((scale > 0).all())
    assert not rms_norm(torch.zeros(2, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64), 1e-6).any()


@pytest.mark.parametrize("dim", [1, 3, 32, 256, 4096, 65535])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e38])
def test_the_norm_is_close_for_any_scale_with_an_outlier(dim: int, scale: float) -> None:
    x = torch.from_numpy(np.random.default_rng(dim).normal(size=(3, dim))) * scale
    x[0, 0] = 1e3 * scale
    weight = torch.linspace(0.5, 2, dim, dtype=torch.float64)
    eps = 1e-6 * scale * scale
    want = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight
    torch.testing.assert_close(rms_norm(x, weight, eps), want, rtol=2e-4 if dim > 4096 else 1e-5, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 32, 768, 65535])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e36])
def test_the_norm_with_a_mean_is_close(dim: int, scale: float) -> None:
    """Also where the mean is far larger than the spread."""
    x = (
        torch.from_numpy(np.random.default_rng(dim).normal(size=(3, dim))) + torch.tensor([[0.0], [100.0], [-3.0]])
    ) * scale
    x = x.float().double()
    weight, bias = torch.linspace(0.5, 2, dim, dtype=torch.float64), torch.linspace(-1, 1, dim, dtype=torch.float64)
    eps = 1e-6 * scale * scale
    want = torch.nn.functional.layer_norm(x / scale, (dim,), weight, bias, 1e-6)
    torch.testing.assert_close(layer_norm(x, weight, bias, eps), want, rtol=0, atol=1e-3 if dim > 4096 else 2e-5)


def test_the_operators_of_the_arithmetic_round_as_ieee_754_says() -> None:
    """Against numpy, which compiles to the processor's instructions; the square root against integers."""
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=20_000) * 10.0 ** rng.integers(-9, 9, 20_000) for _ in range(2))
    for kind in (np.float64, np.float32):
        a: Any = x.astype(kind)
        b: Any = y.astype(kind)
        p, q = torch.from_numpy(a), torch.from_numpy(b)
        for got, want in (
            (p + q, a + b),
            (p - q, a - b),
            (p * q, a * b),
            (p / q, a / b),
            (p.clone().div_(48), a / kind(48)),
            (p.clone().mul_(LOG2_E), a * kind(LOG2_E)),
            (p.clone().add_(LOG2_E), a + kind(LOG2_E)),
            ((p * 1e3).round(), np.rint(a * kind(1e3))),
        ):
            np.testing.assert_array_equal(got.numpy(), want)
    np.testing.assert_array_equal(torch.from_numpy(x).float().numpy(), x.astype(np.float32))
    positive = np.abs(x)
    with localcontext() as context:
        context.prec = 60
        wanted = [float(Decimal(value).sqrt()) for value in positive.tolist()]
    for shape in ((1, 20_000), (20_000, 1)):
        assert _sqrt(torch.from_numpy(positive).view(shape)).flatten().tolist() == wanted


def test_canonical_numbers_have_one_zero_and_keep_nan() -> None:
    got = canonical(torch.tensor([-0.0, 1e-40, -1e-39, 2.0**-126, 1.5], dtype=torch.float64)).numpy()
    np.testing.assert_array_equal(got.view(np.uint32)[:3], [0, 0, 0])
    assert got[3] == np.float32(2.0**-126)
    assert canonical(torch.tensor([torch.nan])).isnan().all()


ROPES = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
)


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: str(r["rope_type"]))
def test_tables_are_the_cosines_of_their_angles(rope: dict[str, object]) -> None:
    cos, sin = Rotation(make_tables(64, 5000, rope)).at(torch.arange(5000))
    angles = np.arange(5000)[:, None] * np.array([float(f) for f in frequencies(64, rope)])
    np.testing.assert_allclose(cos[:, 0], np.cos(angles), rtol=0, atol=4e-9)
    np.testing.assert_allclose(sin[:, 0], np.sin(angles), rtol=0, atol=4e-9)


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: str(r["rope_type"]))
def test_tables_are_those_of_transformers(rope: dict[str, object]) -> None:
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=rope, max_position_embeddings=512)
    inverse = LlamaRotaryEmbedding(config=config).inv_freq.double().numpy()
    np.testing.assert_allclose([float(f) for f in frequencies(64, rope)], inverse, rtol=1e-6)


def test_rotating_keeps_the_angle_between_positions() -> None:
    rotation = Rotation(make_tables(8, 1000, ROPES[0]))
    rng = np.random.default_rng(1)
    q, k = (torch.from_numpy(rng.normal(size=(1, 1, 8))) for _ in range(2))

    def score(i: int, j: int) -> float:
        return float((rotate(q, *rotation.at(torch.tensor([i]))) * rotate(k, *rotation.at(torch.tensor([j])))).sum())

    assert score(300, 290) == pytest.approx(score(910, 900), abs=1e-7)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-12)
    assert score(5, 0) != pytest.approx(score(0, 0), abs=1e-3)

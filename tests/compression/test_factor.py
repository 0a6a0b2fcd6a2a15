"""The factors are the optimum they claim to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efedllm.compression.encode import quantize_rows
from efedllm.compression.factor import balance, rank_for, truncate, whiten_inputs, whiten_outputs

SHAPES = [(24, 16), (16, 16), (12, 30)]


def matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(cols: int, tokens: int = 400) -> Tensor:
    """Correlated directions of very different size, as activations are."""
    mix = matrix(cols, cols, 1) @ torch.diag(torch.logspace(1, -2, cols, dtype=torch.float64))
    return matrix(tokens, cols, 2) @ mix.T


def output_error(weight: Tensor, u: Tensor, v: Tensor, x: Tensor) -> float:
    """Mean over x of |(W - U V) x|^2."""
    return float((x @ (weight - u @ v).T).square().sum(dim=1).mean())


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_truncation_is_eckart_youngs_optimum(rows: int, cols: int) -> None:
    w = matrix(rows, cols)
    u, v = truncate(w, 5)
    singular = torch.linalg.svdvals(w)
    assert float((w - u @ v).square().sum()) == pytest.approx(float(singular[5:].square().sum()))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_whitening_reaches_the_least_possible_output_error(rows: int, cols: int) -> None:
    w, x = matrix(rows, cols), inputs(cols)
    gram = x.T @ x / len(x)
    least = float(torch.linalg.svdvals(w @ torch.linalg.cholesky(gram))[5:].square().sum())
    if rows >= cols:
        u, v = whiten_inputs(w, gram, 5, ridge=1e-12)
    else:
        y = x @ w.T
        u, v = whiten_outputs(w, y.T @ y / len(x), float(gram.diagonal().mean()), 5, ridge=1e-12)
    assert (u.shape, v.shape) == ((rows, 5), (5, cols))
    assert output_error(w, u, v, x) == pytest.approx(least, rel=1e-6)
    assert output_error(w, *truncate(w, 5), x) > 2 * least


def test_both_sides_find_the_same_factors() -> None:
    w, x = matrix(20, 20), inputs(20)
    gram = x.T @ x / len(x)
    y = x @ w.T
    a = whiten_inputs(w, gram, 6)
    b = whiten_outputs(w, y.T @ y / len(x), float(gram.diagonal().mean()), 6)
    torch.testing.assert_close(a[0] @ a[1], b[0] @ b[1], rtol=1e-6, atol=1e-8)


def test_fewer_tokens_than_inputs_are_enough_to_go_on() -> None:
    w, x = matrix(24, 16), inputs(16, tokens=6)
    gram = x.T @ x / len(x)
    u, v = whiten_inputs(w, gram, 6)
    assert output_error(w, u, v, x) < 1e-3 * float((x @ w.T).square().sum(dim=1).mean())


def test_a_gram_matrix_no_ridge_can_repair_falls_back_to_its_eigenvectors() -> None:
    w, x = matrix(24, 16), inputs(16)
    gram = x.T @ x / len(x)
    # Rounding in a lower precision leaves such a matrix: one clearly negative eigenvalue.
    values, vectors = torch.linalg.eigh(gram)
    values[0] = -0.5 * gram.diagonal().mean()
    broken = (vectors * values) @ vectors.T
    u, v = whiten_inputs(w, broken, 5)
    assert torch.isfinite(u).all()
    assert torch.isfinite(v).all()
    least = float(torch.linalg.svdvals(w @ torch.linalg.cholesky(gram))[5:].square().sum())
    assert output_error(w, u, v, x) < 1.5 * least


def test_balanced_factors_share_the_singular_values() -> None:
    u, v = balance(matrix(10, 4) * 1000, matrix(4, 12, 1) / 1000)
    torch.testing.assert_close(u @ v, matrix(10, 4) @ matrix(4, 12, 1))
    torch.testing.assert_close(u.norm(dim=0), v.norm(dim=1))
    assert (u.gather(0, u.abs().argmax(dim=0, keepdim=True)) > 0).all()


@given(keep=st.floats(0.01, 0.999), rows=st.integers(1, 5000), cols=st.integers(1, 5000))
def test_factors_never_have_more_than_the_kept_parameters(keep: float, rows: int, cols: int) -> None:
    rank = rank_for(keep, rows, cols)
    assert rank * (rows + cols) <= keep * rows * cols * (1 + 1e-12)
    assert (rank + 1) * (rows + cols) > keep * rows * cols * (1 - 1e-12)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6))
def test_int8_rows_are_within_half_a_step(rows: int, cols: int, seed: int, size: float) -> None:
    w = matrix(rows, cols, seed) * size
    w[0] = 0
    q, scale = quantize_rows(w)
    assert q.dtype == torch.int8
    assert int(q.abs().max()) <= 127
    step = scale.double().unsqueeze(1)
    assert ((w - q.double() * step).abs() <= 0.5001 * step + 1e-300).all()
    assert scale[0] == 0

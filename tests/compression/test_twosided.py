"""Two-sided factors are the optimum of the loss they are for, of one matrix and of several with one V."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efedllm.compression.factor import RIDGE
from efedllm.compression.lowbit import output_error
from efedllm.compression.weighted_factors import Nested, nested_factors, unit_energy

SHAPES = [(24, 16), (16, 16), (12, 30)]


def matrix(rows: int, cols: int, seed: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(size: int, seed: int) -> Tensor:
    """Directions of very different size."""
    mix = matrix(size, size, seed) @ torch.diag(torch.logspace(0.5, -1.5, size, dtype=torch.float64))
    return mix @ mix.T


def ridged(moment: Tensor) -> Tensor:
    return moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)


def loss(weight: Tensor, u: Tensor, v: Tensor, gram: Tensor, outputs: Tensor) -> float:
    return 0.5 * output_error(weight - u @ v, ridged(gram), ridged(outputs))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_what_is_lost_is_what_was_foretold_and_no_less_is_possible(rows: int, cols: int, rank: int) -> None:
    w, gram, outputs = matrix(rows, cols, 0), moment(cols, 1), moment(rows, 2)
    nested = nested_factors([w], gram, [outputs], min(rows, cols))
    (u,), v = nested.at(rank, [rows])
    assert (u.shape, v.shape) == ((rows, rank), (rank, cols))
    a = torch.linalg.cholesky(ridged(outputs)).T @ w @ torch.linalg.cholesky(ridged(gram))
    least = 0.5 * float(torch.linalg.svdvals(a)[rank:].square().sum())
    assert float(nested.losses[rank]) == pytest.approx(least, rel=1e-6)
    assert loss(w, u, v, gram, outputs) == pytest.approx(least, rel=1e-3)
    torch.testing.assert_close(u.norm(dim=0), v.norm(dim=1))


def test_curvature_moves_the_error_to_where_it_costs_less() -> None:
    w, gram, outputs = matrix(24, 16, 0), moment(16, 1), moment(24, 2)
    blind = nested_factors([w], gram, [1.0], 16)
    seeing = nested_factors([w], gram, [outputs], 16)

    def lost(nested: Nested) -> float:
        (u,), v = nested.at(6, [24])
        return loss(w, u, v, gram, outputs)

    assert lost(seeing) < 0.5 * lost(blind)


def test_matrices_of_one_input_share_v_and_lose_less_for_the_same_parameters() -> None:
    """As query, key and value do: their row spaces overlap."""
    basis = matrix(10, 32, 3)
    weights = [
        matrix(rows, 10, seed) @ basis + 0.1 * matrix(rows, 32, seed + 9) for seed, rows in enumerate((32, 16, 16))
    ]
    gram = moment(32, 1)
    energies = unit_energy(weights, gram)
    stacked = nested_factors(weights, gram, energies, 32)
    us, v = stacked.at(10, [32, 16, 16])
    assert [u.shape[0] for u in us] == [32, 16, 16]
    assert v.shape == (10, 32)
    parameters = 10 * (64 + 32)
    alone = [nested_factors([w], gram, [e], 16) for w, e in zip(weights, energies, strict=True)]
    rank = parameters // sum(len(w) + 32 for w in weights)
    assert float(stacked.losses[10]) < 0.5 * sum(float(one.losses[rank]) for one in alone)


def test_a_moment_that_no_ridge_repairs_and_outputs_without_gradient_are_survived() -> None:
    w = matrix(24, 16, 0)
    for gram, outputs in ((-moment(16, 1), moment(24, 2)), (moment(16, 1), torch.zeros(24, 24, dtype=torch.float64))):
        nested = nested_factors([w], gram, [outputs], 8)
        (u,), v = nested.at(8, [24])
        assert torch.isfinite(u).all()
        assert torch.isfinite(v).all()

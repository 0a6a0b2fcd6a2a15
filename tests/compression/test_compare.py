"""Forms compared together are compared as each by itself, and integers together are those alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efedllm.compression.compare import _SAMPLED, losses
from efedllm.compression.gptq import WeightRows, gptq, sweep
from efedllm.compression.input_moments import Inputs
from efedllm.compression.lowbit import output_error, quantize, residual_factors
from efedllm.compression.plan import DENSE, INT8, LADDER, Choice


def matrix(rows: int, cols: int, seed: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(size: int, seed: int) -> Tensor:
    mix = matrix(size, size, seed) @ torch.diag(torch.logspace(1, -1.5, size, dtype=torch.float64))
    return mix @ mix.T / size


def test_the_metric_is_the_moment_with_its_ridge_and_its_factors() -> None:
    gram = moment(40, 1)
    inputs = Inputs.of(gram)
    ridged = gram / inputs.power + 0.01 * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(inputs.h.double(), ridged, rtol=1e-5, atol=1e-6)
    feedback = inputs.feedback.double()
    torch.testing.assert_close(feedback @ inputs.weights.double().diag() @ feedback.T, ridged, rtol=1e-4, atol=1e-5)
    assert torch.equal(inputs.feedback.triu(), inputs.feedback)
    assert torch.equal(inputs.feedback.diagonal(), torch.ones(40))


def test_what_gptq_says_it_loses_is_lost() -> None:
    w, inputs = matrix(24, 96, 0), Inputs.of(moment(96, 1))
    fitted = gptq(WeightRows.of(w.T.float().contiguous(), 3), inputs, 32)
    errors = w.T.float() - fitted.dense(32)
    torch.testing.assert_close(inputs.power * fitted.lost, inputs.loss(errors), rtol=1e-3, atol=1e-9)
    again = sweep(WeightRows.of(w.T.float().contiguous(), 3), fitted, inputs, 32)
    assert float(inputs.loss(w.T.float() - again.dense(32)).sum()) < float(inputs.loss(errors).sum())


def test_rows_of_many_matrices_and_widths_get_what_they_get_alone() -> None:
    inputs = Inputs.of(moment(96, 1))
    weights = {"a": matrix(20, 96, 2), "b": 3 * matrix(12, 96, 3)}
    sensitivity = {name: torch.rand(len(w), dtype=torch.float64) for name, w in weights.items()}
    together = losses(weights, sensitivity, inputs, 2, LADDER)
    for name in weights:
        for form in LADDER:
            (alone,) = losses({name: weights[name]}, {name: sensitivity[name]}, inputs, 2, (form,)).values()
            assert alone.keys() == ({form} if form in together[name] else set())
            if form in alone:
                assert together[name][form] == pytest.approx(alone[form], rel=2e-2)


def test_losses_are_those_of_the_published_integers() -> None:
    w, gram = matrix(32, 96, 0), moment(96, 1)
    inputs, sensitivity = Inputs.of(gram), torch.rand(32, dtype=torch.float64)
    found = losses({"w": w}, {"w": sensitivity}, inputs, 2, (Choice(4, 64), INT8, DENSE))["w"]
    error = w - quantize(w, inputs, 4, refine=False).dense()
    ridged = inputs.h.double() * inputs.power
    assert found[Choice(4, 64)] == pytest.approx(0.5 * output_error(error, ridged, sensitivity.diag()), rel=1e-3)
    assert 0 == found[DENSE] < found[INT8] < found[Choice(4, 64)]


def test_some_rows_of_a_large_matrix_stand_for_all() -> None:
    w, inputs = matrix(3 * _SAMPLED, 32, 0), Inputs.of(moment(32, 1))
    sensitivity = torch.rand(len(w), dtype=torch.float64)
    form = Choice(4, 64)
    found = losses({"w": w}, {"w": sensitivity}, inputs, 2, (form,))["w"][form]
    error = w - quantize(w, inputs, 4, refine=False).dense()
    ridged = inputs.h.double() * inputs.power
    assert found == pytest.approx(0.5 * float((sensitivity * ((error @ ridged) * error).sum(dim=1)).sum()), rel=0.05)


@pytest.mark.parametrize(("rows", "cols"), [(96, 120), (120, 96)])
@pytest.mark.parametrize("rank", [3, 40])
def test_factors_of_what_is_left_are_near_the_best_of_their_rank(rows: int, cols: int, rank: int) -> None:
    """Few of them come from subspace iteration, many from all eigenvectors."""
    errors, inputs = matrix(rows, cols, 0) * 1e-3, Inputs.of(moment(cols, 1))
    ridged = inputs.h.double() * inputs.power
    lost = output_error(errors - residual_factors(errors.T.float().contiguous(), inputs, rank).product(), ridged)
    least = float(torch.linalg.svdvals(errors @ torch.linalg.cholesky(ridged))[rank:].square().sum())
    assert lost < 1.02 * least

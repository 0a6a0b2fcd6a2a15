"""Few-bit integers fit what the inputs need, and survive inputs of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efedllm.compression.input_moments import Inputs
from efedllm.compression.lowbit import output_error, quantize

SHAPES = [(48, 80), (80, 48)]


def problem(rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """A weight, and the second moment of inputs that lie mostly in few directions, as activations do."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    mix = torch.randn(cols, cols, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.logspace(1, -2, cols, dtype=torch.float64)
    )
    return weight, mix @ mix.T / cols


def nearest(weight: Tensor, bits: int, group: int) -> Tensor:
    """Plain rounding with a scale per group, for comparison."""
    parts = []
    for block in weight.split(group, dim=1):  # type: ignore[no-untyped-call]
        scale = block.abs().amax(dim=1, keepdim=True) / ((1 << (bits - 1)) - 1)
        parts.append((block / scale).round() * scale)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("bits", [3, 4])
def test_each_step_loses_less(rows: int, cols: int, bits: int) -> None:
    w, gram = problem(rows, cols)
    inputs = Inputs.of(gram)
    plain = output_error(w - nearest(w, bits, 32), gram)
    gptq = output_error(w - quantize(w, inputs, bits, group=32, refine=False).dense(), gram)
    refined = output_error(w - quantize(w, inputs, bits, group=32).dense(), gram)
    ranked = output_error(w - quantize(w, inputs, bits, group=32, rank=4).dense(), gram)
    assert gptq < 0.6 * plain
    assert refined < gptq
    assert ranked < refined


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_integers_fit_their_bits_and_groups_have_integer_multipliers(bits: int) -> None:
    w, gram = problem(16, 40)
    low = quantize(w, Inputs.of(gram), bits, group=32, rank=3)
    assert (low.q.dtype, low.mult.dtype, low.mult.shape) == (torch.int8, torch.int8, (16, 2))
    assert (low.scale.dtype, low.scale.shape) == (torch.float32, (16,))
    assert bool((low.mult != 0).all())
    assert int(low.q.min()) >= -(1 << (bits - 1))
    assert int(low.q.max()) < 1 << (bits - 1)
    assert low.factors is not None
    assert (low.factors.u.shape, low.factors.v.shape, low.factors.s.shape) == ((16, 3), (3, 40), (3,))


def test_unusual_inputs_and_weights_stay_finite() -> None:
    w, gram = problem(16, 40)
    once = torch.zeros(40, 40, dtype=torch.float64)
    once[3, 3] = 1
    empty = w.clone()
    empty[2] = 0
    empty[:, :32] = 0
    for weight in (w, empty, torch.zeros_like(w), w * 1e-9, w * 1e6):
        for moment in (gram, once, torch.zeros_like(gram), -gram):
            for rank in (0, 2):
                low = quantize(weight, Inputs.of(moment), 4, group=32, rank=rank)
                assert torch.isfinite(low.dense()).all()


def test_group_multipliers_cost_little_against_free_group_scales() -> None:
    """Groups of very different size in one row still get the integers that suit them."""
    w, _ = problem(24, 128)
    w = w * torch.logspace(0, -1.5, 4, dtype=torch.float64).repeat_interleave(32)
    together = quantize(w, Inputs.of(torch.eye(128, dtype=torch.float64)), 4, group=32)
    plain = Inputs.of(torch.eye(32, dtype=torch.float64))
    alone = [quantize(part, plain, 4, group=32).dense() for part in torch.split(w, 32, dim=1)]
    lost, least = ((w - found).square() for found in (together.dense(), torch.cat(alone, dim=1)))
    assert float(lost.sum()) < 1.03 * float(least.sum())
    assert float(lost[:, 96:].sum()) < 2 * float(least[:, 96:].sum())


def test_equal_inputs_give_equal_integers() -> None:
    w, gram = problem(24, 40)
    a, b = (quantize(w, Inputs.of(gram), 4, group=32, rank=2) for _ in range(2))
    assert torch.equal(a.q, b.q)
    assert torch.equal(a.mult, b.mult)
    assert torch.equal(a.scale, b.scale)
    assert a.factors is not None
    assert b.factors is not None
    assert torch.equal(a.factors.u, b.factors.u)

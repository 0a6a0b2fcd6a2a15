"""Integers of few bits for one weight matrix, W ~ (q * m) * scale + u diag(s) v, fitted to what its inputs need.

With a rank, the factors come first and are alternated with the integers of the rest. Measured in E||(W - W') x||^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.compression.counter_random import signs
from efedllm.compression.factor import balance
from efedllm.compression.gptq import Fitted, WeightRows, gptq, sweep
from efedllm.compression.input_moments import Inputs

GROUP = 64
_SWEEPS = 2
# Subspace iteration for few factors: vectors beside those wanted, and rounds.
_OVERSAMPLED = 8
_ROUNDS = 4
_START = "EFL.residual.1"


@dataclass(frozen=True)
class Factors:
    """u diag(s) v: u int8 [rows, rank], v int8 [rank, cols], s float32 [rank]."""

    u: Tensor
    v: Tensor
    s: Tensor

    def product(self) -> Tensor:
        """float64 [rows, cols]."""
        return (self.u.double() * self.s.double()) @ self.v.double()

    def transposed(self) -> Tensor:
        """float32 [cols, rows]."""
        return (self.v.T.float() * self.s) @ self.u.T.float()


@dataclass(frozen=True)
class LowBit:
    """q int8 [rows, cols] within `bits` bits, mult int8 [rows, ceil(cols / group)] without 0, scale float32 [rows]."""

    q: Tensor
    mult: Tensor
    scale: Tensor
    bits: int
    group: int
    factors: Factors | None = None

    def dense(self) -> Tensor:
        """The matrix it stands for, float64 [rows, cols]."""
        steps = self.mult.double() * self.scale.double().unsqueeze(1)
        base = self.q.double() * steps.repeat_interleave(self.group, dim=1)[:, : self.q.shape[1]]
        return base if self.factors is None else base + self.factors.product()


def quantize(
    weight: Tensor, inputs: Inputs, bits: int, *, group: int = GROUP, rank: int = 0, refine: bool = True
) -> LowBit:
    """weight [rows, cols] in integers of `bits` bits, with int8 factors of `rank` (at most the smaller side) beside
    them. `refine=False` without a rank is GPTQ alone.
    """
    w = weight.T.float().contiguous()
    rank = min(rank, *w.shape)
    if rank == 0:
        rows = WeightRows.of(w, bits)
        fitted = gptq(rows, inputs, group)
        for _ in range(_SWEEPS if refine else 0):
            fitted = sweep(rows, fitted, inputs, group)
        return _low_bit(fitted, bits, group, None)
    factors = residual_factors(w, inputs, rank)
    fitted = gptq(WeightRows.of(w - factors.transposed(), bits), inputs, group)
    factors = residual_factors(w - fitted.dense(group), inputs, rank)
    fitted = gptq(WeightRows.of(w - factors.transposed(), bits), inputs, group)
    for _ in range(_SWEEPS):
        fitted = sweep(WeightRows.of(w - factors.transposed(), bits), fitted, inputs, group)
        factors = residual_factors(w - fitted.dense(group), inputs, rank)
    return _low_bit(fitted, bits, group, factors)


def _low_bit(fitted: Fitted, bits: int, group: int, factors: Factors | None) -> LowBit:
    return LowBit(fitted.q.T.contiguous(), fitted.mult.T.contiguous(), fitted.unit, bits, group, factors)


def residual_factors(errors: Tensor, inputs: Inputs, rank: int) -> Factors:
    """Activation-aware SVD of what a base leaves over, errors [cols, rows] float32, in int8 with one scale per rank.

    u spans the leading eigenvectors of E H E^T: for few of them by subspace iteration from fixed random signs.
    """
    cols, rows = errors.shape
    few = rank + _OVERSAMPLED
    if 4 * few <= min(rows, cols):
        basis = signs(_START, 0, rows * few).view(rows, few)
        for _ in range(_ROUNDS):
            ahead = errors @ torch.linalg.qr(basis)[0]
            basis = errors.T @ (inputs.h @ ahead)
        basis = torch.linalg.qr(basis)[0]
        ahead = errors @ basis
        u = basis.double() @ _leading(ahead.T @ (inputs.h @ ahead), rank)
    elif rows <= cols:
        u = _leading(errors.T @ (inputs.h @ errors), rank)
    else:
        # From the side of the inputs, which are fewer.
        weighted = errors.T @ (inputs.feedback * inputs.weights.sqrt())
        u = torch.linalg.qr(weighted.double() @ _leading(weighted.T @ weighted, rank))[0]
    return int8_factors(*balance(u, (errors @ u.float()).T.double()))


def _leading(symmetric: Tensor, count: int) -> Tensor:
    """float64 [n, count]: eigenvectors, that of the largest eigenvalue first."""
    vectors: Tensor = torch.linalg.eigh(symmetric.double())[1]
    return vectors[:, -count:].flip(1)


def int8_factors(u: Tensor, v: Tensor) -> Factors:
    """u [rows, rank] times v [rank, cols], each pair of a column and a row in int8 with one scale."""
    su, sv = u.abs().amax(dim=0) / 127, v.abs().amax(dim=1) / 127
    su, sv = torch.where(su > 0, su, 1.0), torch.where(sv > 0, sv, 1.0)
    return Factors(
        (u / su).round().to(torch.int8), (v / sv.unsqueeze(1)).round().to(torch.int8), (su * sv).to(torch.float32)
    )


def output_error(error: Tensor, gram: Tensor, outputs: Tensor | None = None) -> float:
    """tr(M E G E^T) for an error E of the weights: with M the identity E||E x||^2, with M the second moment of the
    output gradients (K-FAC) twice the expected rise of the loss."""
    spread = error @ gram @ error.T
    return float(spread.diagonal().sum() if outputs is None else (spread * outputs).sum())

"""Low-rank factors weighted on both sides, of one matrix or of several that read the same input and share V.

For W x with inputs of second moment G = S S^T and a loss whose curvature in the outputs is C = M^T M, the factors that
lose least (1/2 tr(C E G E^T), the K-FAC estimate) are the truncated SVD of M W S, times M^-1 and S^-1; every singular
value left out costs half its square, in units of the model's loss. Matrices with one input are stacked: their M W S
below each other have one V. Ranks are nested, so one decomposition serves every rank. float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.compression.factor import RIDGE, balance, damped_cholesky


@dataclass(frozen=True)
class Nested:
    """Factors up to the largest useful rank: u_t [cap, rows] and v [cap, cols] float32, row i being the i-th pair;
    `losses` [cap + 1] float64: what each rank costs. Rows are those of all stacked matrices."""

    u_t: Tensor
    v: Tensor
    losses: Tensor

    def at(self, rank: int, rows: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """u [rows_i, rank] of each stacked matrix, and their v [rank, cols], balanced; float64."""
        u, v = balance(self.u_t[:rank].double().T, self.v[:rank].double())
        return list(torch.split(u, list(rows))), v


Weight = Tensor | float
"""How errors in a matrix's outputs count: their curvature [rows, rows], or one factor for all of them."""


def nested_factors(weights: Sequence[Tensor], gram: Tensor, outputs: Sequence[Weight], cap: int) -> Nested:
    """`weights` [rows_i, cols] that all read inputs with second moment `gram` [cols, cols]; `outputs` one weight each.

    Both sides get a ridge of a hundredth of their mean diagonal.
    """
    wide = [w.double() for w in weights]
    rows, cols = sum(len(w) for w in wide), wide[0].shape[1]
    cap = min(cap, rows, cols)
    if cols <= rows:
        lower = damped_cholesky(gram, RIDGE)
        if lower is None:
            # No ridge repairs the matrix: count the inputs as uncorrelated.
            lower = torch.eye(cols, dtype=torch.float64) * gram.diagonal().clamp_min(0).mean().sqrt().clamp_min(1e-30)
        # With A = W S the pairs are those of A^T C A, and A times its eigenvectors is u: C need not be factored.
        mapped = [w @ lower for w in wide]
        energies, kept = _leading(
            sum((a.T @ _curved(one, a) for one, a in zip(outputs, mapped, strict=True)), torch.zeros(())), cap
        )
        u = torch.cat([a @ kept for a in mapped])
        v = torch.linalg.solve_triangular(lower, kept.T, upper=False, left=False)
    else:
        # From the side of the outputs, which are fewer: G need not be factored.
        roots = [_root(one) for one in outputs]
        weighted = torch.cat([_times(root, w) for root, w in zip(roots, wide, strict=True)])
        ridge = RIDGE * gram.diagonal().mean()
        energies, left = _leading(weighted @ gram @ weighted.T + ridge * (weighted @ weighted.T), cap)
        v = left.T @ weighted
        parts = torch.split(left, [len(w) for w in wide])
        u = torch.cat([_divided(root, part) for root, part in zip(roots, parts, strict=True)])
    tail = 0.5 * torch.cat([energies, energies.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    return Nested(u.T.float().contiguous(), v.float().contiguous(), tail[: cap + 1])


def _curved(weight: Weight, a: Tensor) -> Tensor:
    """C A, with the ridge."""
    if isinstance(weight, float):
        return weight * a
    return (weight @ a).add_(a, alpha=RIDGE * float(weight.diagonal().mean()))


def _leading(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """All eigenvalues, largest first, and the first `count` eigenvectors."""
    energies, vectors = torch.linalg.eigh(symmetric)
    return energies.flip(0).clamp_min(0), vectors.flip(1)[:, :count]


def unit_energy(weights: Sequence[Tensor], gram: Tensor) -> list[Weight]:
    """Weights under which the outputs of every stacked matrix have the same energy: 1 / E|W x|^2."""
    energies = [float(((w.double() @ gram) * w.double()).sum()) for w in weights]
    return [1 / energy if energy > 0 else 1.0 for energy in energies]


def _root(weight: Weight) -> Weight:
    """M upper triangular with M^T M = weight, or its square root."""
    if isinstance(weight, float):
        return math.sqrt(weight)
    lower = damped_cholesky(weight, RIDGE)
    if lower is None:
        # As with inputs: no ridge repairs it.
        return float(weight.diagonal().clamp_min(0).mean().sqrt().clamp_min(1e-30))
    upper: Tensor = lower.T
    return upper


def _times(root: Weight, w: Tensor) -> Tensor:
    return root * w if isinstance(root, float) else root @ w


def _divided(root: Weight, part: Tensor) -> Tensor:
    return part / root if isinstance(root, float) else torch.linalg.solve_triangular(root, part, upper=True)

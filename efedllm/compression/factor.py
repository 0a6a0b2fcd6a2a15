"""Low-rank factors of one weight matrix, W ~ U V, in closed form.

`truncate` minimises ||W - U V|| (Eckart-Young). `whiten` minimises E||(W - U V) x||^2 over calibration inputs x: with
G = E[x x^T] = L L^T the optimum is the truncated SVD of W L, times L^-1 (SVD-LLM, arXiv 2403.07378). All in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Ridge on G as a fraction of the mean of its diagonal. Few calibration tokens leave G near singular.
RIDGE = 1e-2
_MAX_RIDGE = 1e-1
_NULL = 1e-7


def rank_for(keep: float, rows: int, cols: int) -> int:
    """Rank whose factors hold the fraction `keep` of the rows x cols parameters: floor(keep * mn / (m + n))."""
    return int(keep * rows * cols / (rows + cols))


def truncate(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors of weight [m, n] in the Frobenius norm: u [m, rank], v [rank, n], float64."""
    w = weight.double()
    rows, cols = w.shape
    if rows <= cols:
        top = _top_eigenvectors(w @ w.T, rank)
        return balance(top, top.T @ w)
    top = _top_eigenvectors(w.T @ w, rank)
    return balance(w @ top, top.T)


def whiten_inputs(weight: Tensor, gram: Tensor, rank: int, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Factors of weight [m, n] that are best for inputs with second moment `gram` [n, n] (float64). For n <= m."""
    w = weight.double()
    lower = damped_cholesky(gram, ridge)
    if lower is not None:
        a = w @ lower
        top = _top_eigenvectors(a.T @ a, rank)
        # top^T L^-1 by a triangular solve; L is never inverted.
        v = torch.linalg.solve_triangular(lower, top.T, upper=False, left=False)
        return balance(a @ top, v)
    values, vectors = torch.linalg.eigh(gram)
    alive = values > _NULL * values[-1]
    roots, basis = values[alive].sqrt(), vectors[:, alive]
    a = (w @ basis) * roots
    top = _top_eigenvectors(a.T @ a, min(rank, a.shape[1]))
    return balance(a @ top, (top.T / roots) @ basis.T)


def whiten_outputs(
    weight: Tensor, outputs: Tensor, input_power: float, rank: int, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """The same optimum from the second moment of W x, `outputs` [m, m] (float64); no inverse, any rank of G. For m < n.

    `input_power` is the mean of the diagonal of G, in which the ridge is measured.
    """
    w = weight.double()
    top = _top_eigenvectors(outputs + ridge * input_power * (w @ w.T), rank)
    return balance(top, top.T @ w)


def balance(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with both factors carrying the square root of each singular value, so that neither loses to
    rounding.

    The sign of each pair is fixed (largest entry of the u column positive), so that equal inputs give equal bytes.
    """
    q1, r1 = torch.linalg.qr(u)
    q2, r2 = torch.linalg.qr(v.T)
    a, s, b = torch.linalg.svd(r1 @ r2.T)
    root = s.sqrt()
    u, v = (q1 @ a) * root, root.unsqueeze(1) * (b @ q2.T)
    largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return u * sign, v * sign.T


def _top_eigenvectors(symmetric: Tensor, rank: int) -> Tensor:
    """[n, rank], largest eigenvalue first."""
    vectors: Tensor = torch.linalg.eigh(symmetric)[1]
    return vectors[:, -rank:].flip(1)


def damped_cholesky(gram: Tensor, ridge: float) -> Tensor | None:
    """Lower factor of gram + ridge, with ten times the ridge each time it fails; None beyond the largest."""
    scale = gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype)
    while ridge <= _MAX_RIDGE * (1 + 1e-9):
        lower: Tensor
        lower, info = torch.linalg.cholesky_ex(gram + ridge * scale * eye)
        if int(info) == 0:
            return lower
        ridge *= 10
    return None

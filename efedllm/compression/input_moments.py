"""How errors of a matrix's weights count by what its inputs are: their second moment, and its factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Ridge as a fraction of the mean of the diagonal. Few calibration tokens leave the moment near singular.
_DAMP = 1e-2
_MAX_DAMP = 1.0


@dataclass(frozen=True)
class Inputs:
    """Second moment of a matrix's inputs in units of `power`, the mean of its diagonal.

    `h` [cols, cols] with its ridge. h = T D T^T with T unit upper triangular: `feedback` is T, `weights` [cols] the
    diagonal of D; both empty where they were not asked for. float32, factored in float64.
    """

    h: Tensor
    feedback: Tensor
    weights: Tensor
    power: float

    @classmethod
    def of(cls, gram: Tensor, *, factor: bool = True) -> Inputs:
        """`gram` [cols, cols] float64. The ridge is ten times as large each time it does not suffice. Inputs that were
        never seen (a zero Gram), or whose moment no ridge repairs, count as uncorrelated."""
        power = float(gram.diagonal().mean())
        damp = _DAMP
        while power > 0 and damp <= _MAX_DAMP * (1 + 1e-9):
            h = gram / power
            h.diagonal().add_(damp)
            if not factor:
                return cls(h.float(), h.new_empty(0).float(), h.new_empty(0).float(), power)
            # The Cholesky factor of the matrix from its end is upper triangular from its start.
            lower, info = torch.linalg.cholesky_ex(h.flip(0, 1))
            if int(info) == 0:
                roots = lower.diagonal()
                feedback = (lower / roots).float().flip(0, 1)
                return cls(h.float(), feedback, roots.square().flip(0).float(), power)
            damp *= 10
        eye = torch.eye(len(gram), dtype=torch.float32)
        return cls(eye, eye, eye.diagonal(), 1.0)

    def loss(self, errors: Tensor) -> Tensor:
        """E (e x)^2 of every row e of errors [cols, rows] float32, ridge included: [rows] float64."""
        return self.power * ((self.h @ errors) * errors).sum(dim=0, dtype=torch.float64)

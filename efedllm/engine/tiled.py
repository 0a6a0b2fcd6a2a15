"""Published matrices as torch tensors, and in the form of the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from efedllm.kernels.matrix import TiledLinear, TiledMatrix
from efedllm.kernels.native import Library
from efedllm.models.linear import PublishedLinear, PublishedMatrix


def values_of(matrix: PublishedMatrix) -> Tensor:
    """The numbers as published, in their dtype; no copy."""
    values = torch.from_numpy(matrix.values)
    return values.view(torch.bfloat16) if matrix.dtype == "bfloat16" else values


def scales_of(matrix: PublishedMatrix) -> Tensor | None:
    """float32 [rows]; no copy."""
    return None if matrix.scales is None else torch.from_numpy(matrix.scales)


def tiled_matrix(library: Library, matrix: PublishedMatrix) -> TiledMatrix:
    """The native form of a matrix of integers."""
    mult = None if matrix.multipliers is None else torch.from_numpy(matrix.multipliers)
    return TiledMatrix(
        library,
        torch.from_numpy(matrix.values),
        matrix.columns,
        bits=matrix.bits,
        group=None if mult is None else matrix.group,
        mult=mult,
        scale=scales_of(matrix),
    )


def tiled_linear(library: Library, linear: PublishedLinear, shared: dict[int, TiledMatrix]) -> TiledLinear:
    """The native form of a map of integers. A `v` that several maps share becomes one matrix.

    `shared`: those made so far, by address, of the maps of one mapped file.
    """
    base, u = (None if m is None else tiled_matrix(library, m) for m in (linear.base, linear.u))
    v = None
    if linear.v is not None:
        if linear.v.address not in shared:
            shared[linear.v.address] = tiled_matrix(library, linear.v)
        v = shared[linear.v.address]
    return TiledLinear(base, v, u, None if linear.bias is None else torch.from_numpy(linear.bias))

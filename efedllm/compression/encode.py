"""One tensor of a checkpoint as the parts that are published: dtype, factors, int8 rows, packed integers and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from efedllm.compression.lowbit import LowBit
from efedllm.models.manifest import TensorDtype, TensorForm, TensorInfo, part_names, tensor_id
from efedllm.models.packing import pack
from efedllm.models.tensorfile import Part, hash_parts

DTYPE_NAMES: dict[torch.dtype, TensorDtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
}


@dataclass(frozen=True)
class Encoded:
    """A tensor's manifest entry and its parts by name."""

    info: TensorInfo
    parts: dict[str, Part]


def storage_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype `tensor` is published in: its own, float32 for the rest (float64)."""
    return tensor.dtype if tensor.dtype in DTYPE_NAMES and tensor.dtype != torch.int8 else torch.float32


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: q int8 [m, n], scale float32 [m], matrix ~ q * scale[:, None]; |q| <= 127.

    A row of zeros has scale 0.
    """
    wide = matrix.double()
    scale = (wide.abs().amax(dim=1) / 127).float()
    safe = torch.where(scale > 0, scale, 1.0).double().unsqueeze(1)
    return (wide / safe).round().clamp(-127, 127).to(torch.int8), scale


def encode_dense(name: str, layer: int, file: str, tensor: Tensor, *, int8: bool = False) -> Encoded:
    """A vector [m] or a matrix [out, in], as it is or in int8."""
    rows, cols = (tensor.shape[0], 1) if tensor.ndim == 1 else (tensor.shape[0], tensor.shape[1])
    arrays = list(quantize_rows(tensor)) if int8 else [tensor.to(storage_dtype(tensor))]
    return _encoded(name, layer, file, "dense", (rows, cols, 0), DTYPE_NAMES[arrays[0].dtype], arrays)


def encode_factors(
    name: str, layer: int, file: str, u: Tensor, v: Tensor, dtype: torch.dtype, *, int8: bool = False, stack: str = ""
) -> Encoded:
    """u [out, rank], v [rank, in] in `dtype` or in int8; `stack` names the tensor whose v it is, when it is shared."""
    if int8:
        (qu, su), (qv, sv) = quantize_rows(u), quantize_rows(v)
        arrays = [qu, qv, su, sv]
    else:
        arrays = [u.to(dtype), v.to(dtype)]
    shape = (u.shape[0], v.shape[1], u.shape[1])
    return _encoded(name, layer, file, "lowrank", shape, DTYPE_NAMES[arrays[0].dtype], arrays, stack=stack)


def encode_packed(name: str, layer: int, file: str, matrix: LowBit) -> Encoded:
    """Integers of few bits with their multipliers and row scales, and int8 factors if it has them."""
    arrays = [torch.from_numpy(pack(matrix.q.numpy(), matrix.bits)), matrix.mult, matrix.scale]
    rank = 0
    if matrix.factors is not None:
        rank = len(matrix.factors.s)
        arrays += [matrix.factors.u, matrix.factors.v, matrix.factors.s]
    shape = (matrix.q.shape[0], matrix.q.shape[1], rank)
    dtype = cast(TensorDtype, f"int{matrix.bits}")
    return _encoded(name, layer, file, "packed", shape, dtype, arrays, matrix.group)


def _encoded(
    name: str,
    layer: int,
    file: str,
    form: TensorForm,
    shape: tuple[int, int, int],
    dtype: TensorDtype,
    arrays: list[Tensor],
    group: int = 0,
    stack: str = "",
) -> Encoded:
    rows, cols, rank = shape
    names = part_names(name, form, dtype, rank, stack)
    parts = {
        part: Part(
            "uint8" if array.dtype == torch.uint8 else DTYPE_NAMES[array.dtype], tuple(array.shape), _bytes(array)
        )
        for part, array in zip(names, arrays, strict=True)
    }
    info = TensorInfo(
        name=name,
        layer=layer,
        tensor_id="0x" + tensor_id(name).hex(),
        form=form,
        rows=rows,
        cols=cols,
        rank=rank,
        group=group,
        stack=stack,
        dtype=dtype,
        parts=names,
        file=file,
        sha256=hash_parts(part.data for part in parts.values()),
    )
    return Encoded(info, parts)


def _bytes(array: Tensor) -> memoryview:
    """Little-endian row-major bytes (torch runs on little-endian machines only)."""
    return array.detach().contiguous().view(-1).view(torch.uint8).numpy().data

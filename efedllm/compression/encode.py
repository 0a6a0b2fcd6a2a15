"""One tensor of a checkpoint as the parts that are published: dtype, factors, int8 rows and scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.models.manifest import TensorDtype, TensorInfo, part_names, tensor_id
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
    return _encoded(name, layer, file, "dense", (rows, cols, 0), arrays)


def encode_factors(
    name: str, layer: int, file: str, u: Tensor, v: Tensor, dtype: torch.dtype, *, int8: bool = False
) -> Encoded:
    """u [out, rank], v [rank, in] in `dtype` or in int8."""
    if int8:
        (qu, su), (qv, sv) = quantize_rows(u), quantize_rows(v)
        arrays = [qu, qv, su, sv]
    else:
        arrays = [u.to(dtype), v.to(dtype)]
    return _encoded(name, layer, file, "lowrank", (u.shape[0], v.shape[1], u.shape[1]), arrays)


def _encoded(name: str, layer: int, file: str, form: str, shape: tuple[int, int, int], arrays: list[Tensor]) -> Encoded:
    dtype = DTYPE_NAMES[arrays[0].dtype]
    names = part_names(name, form, dtype)
    parts = {
        part: Part(DTYPE_NAMES[array.dtype], tuple(array.shape), _bytes(array))
        for part, array in zip(names, arrays, strict=True)
    }
    rows, cols, rank = shape
    info = TensorInfo(
        name=name,
        layer=layer,
        tensor_id="0x" + tensor_id(name).hex(),
        form="lowrank" if form == "lowrank" else "dense",
        rows=rows,
        cols=cols,
        rank=rank,
        dtype=dtype,
        parts=names,
        file=file,
        sha256=hash_parts(part.data for part in parts.values()),
    )
    return Encoded(info, parts)


def _bytes(array: Tensor) -> memoryview:
    """Little-endian row-major bytes (torch runs on little-endian machines only)."""
    return array.detach().contiguous().view(-1).view(torch.uint8).numpy().data

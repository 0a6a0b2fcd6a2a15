"""Published matrices and linear maps: one record for every form, read once, used by every engine. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.errors import ModelError
from efedllm.models.architecture import LinearShape
from efedllm.models.packing import PACKED_BITS, unpack
from efedllm.models.tensorfile import TensorFile, check_layout
from efedllm.models.tensors import TensorDtype, TensorInfo

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_NUMPY: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "bfloat16": np.uint16,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
}


@dataclass(frozen=True, eq=False)
class PublishedMatrix:
    """value[r, c] = values[r, c] * multipliers[r, c // group] * scales[r], without the factors that are None.

    `values`: [rows, columns] of `dtype`; bfloat16 as its bits in uint16, integers of 2 to 6 bits as uint8 [rows, bytes
    per row], see `packing`. `multipliers`: int8 [rows, ceil(columns / group)], of those integers only. `scales`:
    float32 [rows]. All are views of the mapped file.
    """

    values: Array
    dtype: TensorDtype
    columns: int
    scales: Float32 | None = None
    multipliers: npt.NDArray[np.int8] | None = None
    group: int = 0

    @property
    def rows(self) -> int:
        return len(self.values)

    @property
    def bits(self) -> int:
        """Bits of an integer; 8 unless it is packed."""
        return PACKED_BITS.get(self.dtype, 8)

    @property
    def is_integer(self) -> bool:
        return self.dtype in ("int8", *PACKED_BITS)

    @property
    def address(self) -> int:
        """Where `values` lie in memory: the same for matrices that share them, as long as the file is mapped."""
        return int(self.values.ctypes.data)

    def integers(self) -> npt.NDArray[np.int8] | npt.NDArray[np.int16]:
        """int8 [rows, columns] without the scales; packed ones times their multipliers, int16 up to 2^12."""
        if self.multipliers is None:
            return self.values
        products = unpack(self.values, self.columns, self.bits).astype(np.int16)
        products *= self._spread(self.multipliers)
        return products

    def floats(self) -> Float32:
        """The matrix, float32 [rows, columns]; a view when it is published as float32."""
        if self.dtype == "bfloat16":
            wide: Float32 = (self.values.astype(np.uint32) << 16).view(np.float32)
            return wide
        if self.multipliers is not None:
            # Products below 2^13 are exact in float32; the row scale then rounds once.
            out = unpack(self.values, self.columns, self.bits).astype(np.float32)
            out *= self._spread(self.multipliers)
        else:
            out = self.values.astype(np.float32, copy=False)
        if self.scales is not None:
            out *= self.scales[:, None]
        return out

    def _spread(self, multipliers: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """int8 [rows, columns]: the multiplier of every number."""
        return np.repeat(multipliers, min(self.group, self.columns), axis=1)[:, : self.columns]


@dataclass(frozen=True, eq=False)
class PublishedLinear:
    """y = B x + U (V x) + bias: a `base` B [rows, columns], factors `u` [rows, rank] and `v` [rank, columns], or both.

    `bias`: float32 [rows], or None.
    """

    base: PublishedMatrix | None
    u: PublishedMatrix | None = None
    v: PublishedMatrix | None = None
    bias: Float32 | None = None

    @property
    def rows(self) -> int:
        first = self.base or self.u
        assert first is not None
        return first.rows

    @property
    def matrices(self) -> tuple[PublishedMatrix, ...]:
        """Those that are there."""
        return tuple(m for m in (self.base, self.u, self.v) if m is not None)


def read_linear(file: TensorFile, tensor: TensorInfo, bias: Float32 | None = None) -> PublishedLinear:
    """The matrix or factors of `tensor`, views of the mapped `file`.

    Raises ModelError "corrupt-weights" when the file has other dtypes or shapes than the entry says.
    """
    check_layout(file, tensor)

    def matrix(part: str, columns: int, scale: str) -> PublishedMatrix:
        int8 = tensor.form == "packed" or tensor.dtype == "int8"
        scales = array(file, scale) if int8 else None
        return PublishedMatrix(array(file, part), "int8" if int8 else tensor.dtype, columns, scales)

    name, v = tensor.name, f"{tensor.stack or tensor.name}.v"
    if tensor.form == "dense":
        return PublishedLinear(matrix(name, tensor.cols, f"{name}.scale"), bias=bias)
    if tensor.form == "lowrank":
        u = matrix(f"{name}.u", tensor.rank, f"{name}.u.scale")
        return PublishedLinear(None, u, matrix(v, tensor.cols, f"{v}.scale"), bias)
    q, scale, multipliers = (array(file, f"{name}.{part}") for part in ("q", "q.scale", "q.mult"))
    base = PublishedMatrix(q, tensor.dtype, tensor.cols, scale, multipliers, tensor.group)
    if tensor.rank == 0:
        return PublishedLinear(base, bias=bias)
    # A column of u and a row of v have one scale together.
    u = PublishedMatrix(array(file, f"{name}.u"), "int8", tensor.rank)
    return PublishedLinear(base, u, matrix(v, tensor.cols, f"{name}.uv.scale"), bias)


def array(file: TensorFile, name: str) -> Array:
    """An array as published, a view of the mapped file that keeps the mapping alive; bfloat16 as uint16."""
    slot = file.slot(name)
    return np.frombuffer(file.view(name), dtype=_NUMPY[slot.dtype]).reshape(slot.shape)


class PublishedTensors:
    """The published tensors of a layer range, each of which must find its place in the architecture."""

    def __init__(self, tensors: Iterable[TensorInfo]) -> None:
        self._tensors = {t.name: t for t in tensors}
        self._used: set[str] = set()

    def entry(self, name: str, shape: tuple[int, int] | None = None) -> TensorInfo:
        """Raises ModelError "corrupt-weights" when there is no such tensor, or one of another [rows, cols]."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise misfit(f"the manifest has no {name}")
        if shape is not None and (tensor.rows, tensor.cols) != shape:
            raise misfit(f"{name} is {tensor.rows}x{tensor.cols}, not {shape[0]}x{shape[1]}")
        self._used.add(name)
        return tensor

    def linear(self, file: TensorFile, path: str, shape: LinearShape) -> PublishedLinear:
        """The linear map of the module named `path`, with its bias. Raises ModelError "corrupt-weights"."""
        tensor = self.entry(f"{path}.weight", (shape.rows, shape.columns))
        return read_linear(file, tensor, self.vector(file, f"{path}.bias", shape.rows) if shape.bias else None)

    def matrix(self, file: TensorFile, name: str, shape: tuple[int, int] | None = None) -> PublishedMatrix:
        """A matrix that has no factors. Raises ModelError "corrupt-weights"."""
        tensor = self.entry(name, shape)
        base = read_linear(file, tensor).base if tensor.form == "dense" else None
        if base is None:
            raise misfit(f"{name} must be dense")
        return base

    def vector(self, file: TensorFile, name: str, size: int) -> Float32:
        """float32 [size]. Raises ModelError "corrupt-weights"."""
        return read_vector(file, self.entry(name, (size, 1)))

    def check_all_used(self) -> None:
        """Raises ModelError "corrupt-weights" when a tensor was never asked for."""
        unused = sorted(set(self._tensors) - self._used)
        if unused:
            raise misfit(f"{unused[0]} has no place in this architecture")


def read_vector(file: TensorFile, tensor: TensorInfo) -> Float32:
    """float32 [rows] of a tensor with one column. Raises ModelError "corrupt-weights"."""
    if tensor.form != "dense" or tensor.dtype == "int8":
        raise misfit(f"{tensor.name} must be a vector of floats")
    check_layout(file, tensor)
    return PublishedMatrix(array(file, tensor.name), tensor.dtype, 1).floats()


def misfit(what: str) -> ModelError:
    """The error of a published model whose files, manifest and config.json do not fit together."""
    return ModelError("corrupt-weights", f"The published model is inconsistent: {what}.", "Fetch the model again.")

"""The published tensors of a layer range, as torch tensors over the mapped files."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from efedllm.errors import ModelError
from efedllm.models.manifest import TensorInfo
from efedllm.models.tensorfile import TensorFile

_TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


class TensorReader:
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

    def parts(self, file: TensorFile, tensor: TensorInfo) -> list[Tensor]:
        """The parts of `tensor` as published, in hashing order; no copy."""
        return [part(file, name) for name in tensor.parts]

    def vector(self, file: TensorFile, name: str, size: int) -> Tensor:
        """float32 [size]."""
        tensor = self.entry(name, (size, 1))
        return part(file, tensor.parts[0]).float()

    def check_all_used(self) -> None:
        """Raises ModelError "corrupt-weights" when a tensor was never asked for."""
        unused = sorted(set(self._tensors) - self._used)
        if unused:
            raise misfit(f"{unused[0]} has no place in this architecture")


def part(file: TensorFile, name: str) -> Tensor:
    """A tensor over the mapped file; no copy."""
    slot = file.slot(name)
    # Through numpy, which holds on to the buffer: torch.frombuffer lets go of it, and the file could be unmapped
    # below it.
    data = torch.from_numpy(np.frombuffer(file.view(name), dtype=np.uint8))
    return data.view(_TORCH_DTYPES[slot.dtype]).view(slot.shape)


def misfit(what: str) -> ModelError:
    return ModelError("corrupt-weights", f"The published model is inconsistent: {what}.", "Fetch the model again.")

"""Factors of all ranks, between measuring the layers and making them: files in the work directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from efedllm.compression.plan import Group, Plan
from efedllm.compression.twosided import Nested
from efedllm.compression.work import WorkDirectory
from efedllm.models.tensorfile import Part, TensorFile, write_tensor_file

_SEPARATOR = "+"


class FactorFiles:
    """One file a layer, in float32; removed with the work directory."""

    def __init__(self, work: WorkDirectory) -> None:
        self._work = work

    def write(self, index: int, nested: Mapping[Group, Nested], means: Mapping[str, Tensor]) -> None:
        parts = {f"mean {name}": _part(mean) for name, mean in means.items()}
        for group, one in nested.items():
            key = _SEPARATOR.join(group)
            parts |= {f"u {key}": _part(one.u_t), f"v {key}": _part(one.v)}
        write_tensor_file(self._path(index), parts)

    def read(
        self, index: int, names: Mapping[str, object], plan: Plan
    ) -> tuple[dict[Group, Nested], dict[str, Tensor]]:
        """The factors that `plan` chose for the matrices of a layer, cut to their ranks, and the means.

        Raises ModelError "missing-file" or "corrupt-weights" when the file was taken away or damaged.
        """
        groups: dict[str, list[str]] = {}
        for name in names:
            if plan[name].rank and plan[name].bits >= 8:
                groups.setdefault(plan[name].stack or name, []).append(name)
        with TensorFile(self._path(index)) as file:
            nested = {}
            for group in map(tuple, groups.values()):
                key, rank = _SEPARATOR.join(group), plan[group[0]].rank
                u_t, v = (_read(file, f"{side} {key}", rank) for side in "uv")
                nested[group] = Nested(u_t, v, torch.zeros(0))
            means = {
                name.removeprefix("mean "): _read(file, name).double()
                for name in file.slots
                if name.startswith("mean ")
            }
        return nested, means

    def _path(self, index: int) -> Path:
        return self._work.scratch(f"factors-{index:04d}")


def _part(tensor: Tensor) -> Part:
    array = np.ascontiguousarray(tensor.float().numpy())
    return Part("float32", tuple(array.shape), array.view(np.uint8).reshape(-1).data)


def _read(file: TensorFile, name: str, rows: int | None = None) -> Tensor:
    """The first `rows` rows; a copy."""
    slot = file.slot(name)
    array = np.frombuffer(file.view(name), dtype=np.float32).reshape(slot.shape)
    return torch.from_numpy(array[:rows].copy())

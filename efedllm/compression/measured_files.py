"""What was measured about the layers, between measuring and making them: figures, and factors of all ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from efedllm.compression.plan import Choice, Group, Measured, Plan
from efedllm.compression.weighted_factors import Nested
from efedllm.models.tensorfile import Part, TensorFile, write_tensor_file

_SEPARATOR = "+"


class MeasuredFiles:
    """Two files a layer in `folder`, under names that begin with `identity`; factors are float32."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity[:16]

    def write(
        self, index: int, measured: Measured, nested: Mapping[Group, Nested], means: Mapping[str, Tensor]
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = {f"mean {name}": _part(mean) for name, mean in means.items()}
        for group, one in nested.items():
            key = _SEPARATOR.join(group)
            parts |= {f"u {key}": _part(one.u_t), f"v {key}": _part(one.v)}
        if parts:
            write_tensor_file(self._path(index, "factors"), parts)
        # Last: a layer whose figures are there is complete.
        partial = self._path(index, "tmp")
        partial.write_text(json.dumps(_to_json(measured)))
        partial.replace(self._path(index, "json"))

    def figures(self, layers: int) -> list[Measured] | None:
        """Of all layers, the last one first; None unless all are there."""
        try:
            documents = [json.loads(self._path(index, "json").read_text()) for index in reversed(range(layers))]
        except (OSError, ValueError):
            # Not measured yet, or interrupted: all layers are measured in one pass.
            return None
        return [_from_json(document) for document in documents]

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
        with TensorFile(self._path(index, "factors")) as file:
            nested = {}
            for group in map(tuple, groups.values()):
                key, rank = _SEPARATOR.join(group), plan[group[0]].rank
                u_t, v = (_read(file, f"{side} {key}", rank) for side in "uv")
                nested[group] = Nested(u_t, v, torch.zeros(0))
            kept = [name for name in file.slots if name.startswith("mean ")]
            means = {name.removeprefix("mean "): _read(file, name).double() for name in kept}
        return nested, means

    def _path(self, index: int, kind: str) -> Path:
        return self._folder / f"{self._identity}-{index:04d}.{kind}"


def _to_json(measured: Measured) -> dict[str, object]:
    table = {
        name: [[choice.bits, choice.group, choice.rank, loss] for choice, loss in forms.items()]
        for name, forms in measured.table.items()
    }
    spectra = [[list(group), list(losses)] for group, losses in measured.spectra.items()]
    return {"groups": [list(group) for group in measured.groups], "table": table, "spectra": spectra}


def _from_json(document: dict[str, list[list[object]]]) -> Measured:
    tables: dict[str, list[list[float]]] = document["table"]  # type: ignore[assignment]
    table = {
        name: {Choice(int(bits), int(group), int(rank)): loss for bits, group, rank, loss in forms}
        for name, forms in tables.items()
    }
    spectra: list[tuple[list[str], list[float]]] = document["spectra"]  # type: ignore[assignment]
    groups: list[list[str]] = document["groups"]  # type: ignore[assignment]
    return Measured(
        tuple(tuple(group) for group in groups), table, {tuple(group): tuple(losses) for group, losses in spectra}
    )


def _part(tensor: Tensor) -> Part:
    array = np.ascontiguousarray(tensor.float().numpy())
    return Part("float32", tuple(array.shape), array.view(np.uint8).reshape(-1).data)


def _read(file: TensorFile, name: str, rows: int | None = None) -> Tensor:
    """The first `rows` rows; a copy."""
    slot = file.slot(name)
    array = np.frombuffer(file.view(name), dtype=np.float32).reshape(slot.shape)
    return torch.from_numpy(array[:rows].copy())

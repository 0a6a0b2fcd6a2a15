"""Published directories whose weights, or architecture, are not the published ones.

A node that cheats on its matrices runs the real engine over such a directory. Every edit is a function of one matrix
in float32, dense or as two factors; what comes out is written in float32, so that the edit is all that differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.models.manifest import (
    LAYER_EMBED,
    LAYER_HEAD,
    MANIFEST_NAME,
    MAX_LAYERS,
    Manifest,
    TensorInfo,
    part_names,
    weights_root,
)
from efedllm.models.packing import PACKED_BITS, unpack
from efedllm.models.tensorfile import Part, TensorFile, hash_parts, write_tensor_file

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """One published matrix in float32: `weight` [rows, cols], or factors u [rows, rank], v [rank, cols]."""

    name: str
    weight: Floats | None = None
    u: Floats | None = None
    v: Floats | None = None

    def each(self, change: Callable[[Floats], Floats]) -> Matrix:
        """`change` applied to every array there is."""

        def changed(part: Floats | None) -> Floats | None:
            return None if part is None else change(part)

        return Matrix(self.name, changed(self.weight), changed(self.u), changed(self.v))


Edit = Callable[[Matrix], Matrix]
IntegerEdit = Callable[[str, npt.NDArray[np.int8]], npt.NDArray[np.int8]]


def falsify(published: Path, out: Path, edit: Edit, lo: int, hi: int) -> Path:
    """A copy of a published directory with `edit` applied to every matrix of layers [lo, hi), in float32.

    Packed matrices become dense ones. Files that do not change are hard links.
    """
    return _rewrite(published, out, lambda file, tensor: _edited(file, tensor, edit), lo, hi)


def falsify_integers(published: Path, out: Path, edit: IntegerEdit, lo: int, hi: int) -> Path:
    """As `falsify` for a model of int8 rows: `edit` changes the integers, the scales stay."""

    def change(file: TensorFile, tensor: TensorInfo) -> tuple[TensorInfo, dict[str, Part]]:
        parts = {name: _part(file, name) for name in tensor.parts}
        if tensor.dtype == "int8":
            for name in tensor.parts:
                if parts[name].dtype == "int8":
                    values = np.frombuffer(parts[name].data, np.int8).reshape(parts[name].shape)
                    parts[name] = replace(parts[name], data=edit(name, values).astype(np.int8).tobytes())
        return tensor, parts

    return _rewrite(published, out, change, lo, hi)


def with_config(published: Path, out: Path, **changes: Any) -> Path:
    """A copy of a published directory with other entries in config.json."""
    out.mkdir(parents=True)
    for path in published.iterdir():
        if path.name == "config.json":
            (out / path.name).write_text(json.dumps(json.loads(path.read_text()) | changes))
        else:
            os.link(path, out / path.name)
    return out


def _rewrite(
    published: Path,
    out: Path,
    change: Callable[[TensorFile, TensorInfo], tuple[TensorInfo, dict[str, Part]]],
    lo: int,
    hi: int,
) -> Path:
    manifest = Manifest.load(published)
    out.mkdir(parents=True)
    touched = {t.file for t in manifest.tensors if t.layer <= MAX_LAYERS and lo <= t.layer < hi}
    tensors: dict[str, TensorInfo] = {t.name: t for t in manifest.tensors}
    for name in touched:
        parts: dict[str, Part] = {}
        with TensorFile(published / name) as file:
            for tensor in (t for t in manifest.tensors if t.file == name):
                tensors[tensor.name], written = change(file, tensor)
                digest = hash_parts(written[part].data for part in tensors[tensor.name].parts)
                tensors[tensor.name] = tensors[tensor.name].model_copy(update={"sha256": digest})
                parts |= written
            write_tensor_file(out / name, parts)
            del parts, written
    for path in published.iterdir():
        if path.is_file() and path.name not in touched and path.name != MANIFEST_NAME:
            os.link(path, out / path.name)
    # Nobody checks a cheat's manifest against a root: only what the loader reads has to be right.
    changed = manifest.model_copy(update={"tensors": tuple(tensors[t.name] for t in manifest.tensors)})
    forged = {**json.loads(changed.canonical_json())}
    forged["weights_root"] = "0x" + weights_root(changed.tensors, changed.files).hex()
    (out / MANIFEST_NAME).write_text(json.dumps(forged))
    return out


def _part(file: TensorFile, name: str) -> Part:
    slot = file.slot(name)
    return Part(slot.dtype, slot.shape, bytes(file.view(name)))


def _edited(file: TensorFile, tensor: TensorInfo, edit: Edit) -> tuple[TensorInfo, dict[str, Part]]:
    if tensor.cols == 1 or tensor.layer in (LAYER_EMBED, LAYER_HEAD):
        return tensor, {name: _part(file, name) for name in tensor.parts}
    changed = edit(read_matrix(file, tensor))
    if changed.weight is not None:
        arrays = {tensor.name: changed.weight}
    else:
        assert changed.u is not None
        assert changed.v is not None
        arrays = {f"{tensor.name}.u": changed.u, f"{tensor.name}.v": changed.v}
    rank = 0 if changed.u is None else changed.u.shape[1]
    form = "lowrank" if rank else "dense"
    update = {
        "form": form,
        "dtype": "float32",
        "rank": rank,
        "group": 0,
        "stack": "",
        "parts": part_names(tensor.name, form, "float32", rank),
    }
    parts = {n: Part("float32", a.shape, np.ascontiguousarray(a, "<f4").tobytes()) for n, a in arrays.items()}
    return tensor.model_copy(update=update), parts


def read_matrix(file: TensorFile, tensor: TensorInfo) -> Matrix:
    """One tensor in float32, int8 rows multiplied by their scales; packed ones as the dense matrix that they are."""
    if tensor.form == "packed":
        return Matrix(tensor.name, _unpacked(file, tensor))
    count = 2 if tensor.form == "lowrank" else 1
    arrays = [_floats(_part(file, name)) for name in tensor.parts[:count]]
    scales = [_floats(_part(file, name)) for name in tensor.parts[count:]]
    if scales:
        arrays = [a * s[:, None] for a, s in zip(arrays, scales, strict=True)]
    return Matrix(tensor.name, arrays[0]) if count == 1 else Matrix(tensor.name, None, arrays[0], arrays[1])


def _unpacked(file: TensorFile, tensor: TensorInfo) -> Floats:
    """W = (q * m) * scale + u diag(s) v, float32 [rows, cols], see TensorInfo."""
    packed = _part(file, tensor.parts[0])
    words = np.frombuffer(packed.data, np.uint8).reshape(packed.shape)
    multiplier, scale, *factors = (_floats(_part(file, name)) for name in tensor.parts[1:])
    wide = np.repeat(multiplier, tensor.group, axis=1)[:, : tensor.cols]
    weight = unpack(words, tensor.cols, PACKED_BITS[tensor.dtype]) * wide * scale[:, None]
    if factors:
        u, v, s = factors
        weight = weight + u @ (v * s[:, None])
    return np.asarray(weight, np.float32)


def _floats(part: Part) -> Floats:
    if part.dtype == "bfloat16":
        words = np.frombuffer(part.data, "<u2").astype(np.uint32) << 16
        return words.view(np.float32).reshape(part.shape)
    kinds = {"float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1"}
    return np.frombuffer(part.data, kinds[part.dtype]).astype(np.float32).reshape(part.shape)


# --- edits ---


def seeded(name: str, salt: int = 0) -> np.random.Generator:
    """A generator whose stream depends on the tensor's name only: the same cheat on every run."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{salt}|{name}".encode()).digest()[:8]))


def noise(scale: float) -> Edit:
    """Every weight times (1 + scale * N(0, 1))."""

    def edit(matrix: Matrix) -> Matrix:
        generator = seeded(matrix.name)
        return matrix.each(lambda a: (a * (1 + scale * generator.standard_normal(a.shape))).astype(np.float32))

    return edit


def other_seed(matrix: Matrix) -> Matrix:
    """Another model altogether: weights of the same size and spread."""
    generator = seeded(matrix.name, 1)
    return matrix.each(lambda a: (a.std() * generator.standard_normal(a.shape)).astype(np.float32))


def lora(share: str) -> Edit:
    """A rank-1 update of one thousandth of the norm, on the matrices whose name contains `share` only."""

    def change(a: Floats, generator: np.random.Generator) -> Floats:
        b, c = generator.standard_normal((a.shape[0], 1)), generator.standard_normal((1, a.shape[1]))
        update = b @ c
        return (a + update * (1e-3 * np.linalg.norm(a) / np.linalg.norm(update))).astype(np.float32)

    def edit(matrix: Matrix) -> Matrix:
        if share not in matrix.name:
            return matrix
        generator = seeded(matrix.name)
        return matrix.each(lambda a: change(a, generator))

    return edit


def rank(share: float) -> Edit:
    """Only the first `share` of every factor's rank; dense matrices lose the same part of their spectrum."""

    def edit(matrix: Matrix) -> Matrix:
        if matrix.u is not None and matrix.v is not None:
            kept = max(1, int(matrix.u.shape[1] * share))
            return replace(matrix, u=matrix.u[:, :kept], v=matrix.v[:kept])
        assert matrix.weight is not None
        left, middle, right = np.linalg.svd(matrix.weight, full_matrices=False)
        kept = max(1, int(len(middle) * share))
        return Matrix(matrix.name, None, left[:, :kept] * middle[:kept], right[:kept])

    return edit


def precision(kind: str) -> Edit:
    """Weights rounded to fp16, bf16, fp8 (e4m3), or to integers per row: int8, int6, int4."""

    def edit(matrix: Matrix) -> Matrix:
        return matrix.each(lambda a: rounded(a, kind))

    return edit


def rounded(a: Floats, kind: str) -> Floats:
    """`a` as it survives storage in `kind`."""
    if kind.startswith("int"):
        levels = 2 ** (int(kind[3:]) - 1) - 1
        scale = np.maximum(np.abs(a).max(axis=1, keepdims=True), 1e-30) / levels
        return np.asarray(np.round(a / scale) * scale, np.float32)
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[kind]
    values = torch.from_numpy(np.ascontiguousarray(a))
    # e4m3 has no room for small weights: scaled by row, as a serving stack would.
    scale = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 448 if kind == "fp8" else torch.ones(1)
    return np.asarray(((values / scale).to(dtype).float() * scale).numpy(), np.float32)


def integer_bits(bits: int) -> IntegerEdit:
    """int8 rows with only their upper `bits` bits."""
    step = 1 << (8 - bits)
    return lambda _name, q: np.clip(np.round(q.astype(np.int16) / step) * step, -127, 127).astype(np.int8)


def one_step(suffix: str) -> IntegerEdit:
    """One integer of one matrix, off by one: the smallest change of a model that there is."""

    def edit(name: str, q: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        if suffix not in name:
            return q
        changed = q.copy()
        changed[0, 0] += 1 if changed[0, 0] < 127 else -1
        return changed

    return edit

"""Published models of a given shape with random weights: for memory and speed, never for quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from efedllm.compression.encode import Encoded, encode_dense, encode_factors, encode_packed
from efedllm.compression.lowbit import Factors, LowBit
from efedllm.models.manifest import (
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_HEAD,
    FileInfo,
    Manifest,
    Quant,
    TensorInfo,
    layer_file,
    part_names,
    tensor_id,
    weights_root,
)
from efedllm.models.skeleton import Skeleton, build_skeleton
from efedllm.models.tensorfile import Part, hash_parts, write_tensor_file

Form = Literal["fp32", "int8", "lowrank", "int4", "int4+rank"]
RANK = 64
"""Of the factors beside the integers in the form "int4+rank"."""
_GROUP = 64
_INT8_ROW_SCALE = 2.0**-11
_INT4_ROW_SCALE = 2.0**-14


@dataclass(frozen=True)
class LlamaShape:
    """A Llama by its numbers."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    positions: int = 4096

    def config(self) -> Any:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )


def publish_synthetic(directory: Path, shape: LlamaShape, form: Form, keep: float = 0.3) -> Manifest:
    """Write a published model. Embedding and head are int8 unless `form` is fp32; "lowrank" keeps `keep` of the
    parameters of every matrix, in int8.
    """
    skeleton = build_skeleton(shape.config(), "eager")
    generator = torch.Generator().manual_seed(1)
    groups: dict[str, list[str]] = {EMBED_FILE: [], HEAD_FILE: []}
    made: dict[tuple[int, ...], Encoded] = {}
    for name, _ in skeleton.model.named_parameters():
        groups.setdefault(place_of(skeleton, name)[1], []).append(name)
    return publish_entries(
        directory,
        skeleton,
        ([_variant(skeleton, name, form, keep, generator, made) for name in names] for names in groups.values()),
        quant={"fp32": "none", "int4": "packed", "int4+rank": "packed"}.get(form, "int8"),  # type: ignore[arg-type]
        keep=keep if form == "lowrank" else 1.0,
        created_by="bench",
    )


def publish_entries(
    directory: Path,
    skeleton: Skeleton,
    files: Iterable[Sequence[Encoded]],
    *,
    quant: Quant,
    keep: float = 1.0,
    created_by: str,
) -> Manifest:
    """Write config.json, a file for each of `files`, which are the tensors of one file each, and the manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    skeleton.config.save_pretrained(directory)
    tensors: list[TensorInfo] = []
    for entries in files:
        file = directory / entries[0].info.file
        write_tensor_file(file, {name: part for entry in entries for name, part in entry.parts.items()})
        tensors += [entry.info for entry in entries]
    ordered = tuple(sorted(tensors, key=lambda t: (t.layer, t.name)))
    infos = tuple(FileInfo.of(directory / name) for name in sorted({"config.json", *(t.file for t in ordered)}))
    manifest = Manifest(
        architecture=type(skeleton.model).__name__,
        model_type=skeleton.config.model_type,
        layers=skeleton.layers,
        hidden=skeleton.hidden,
        vocab=skeleton.vocab,
        tied=skeleton.tied,
        dtype="float32",
        method="truncate",
        keep=keep,
        quant=quant,
        tensors=ordered,
        files=infos,
        weights_root="0x" + weights_root(ordered, infos).hex(),
        created_by=created_by,
    )
    manifest.save(directory)
    return manifest


def place_of(skeleton: Skeleton, name: str) -> tuple[int, str]:
    """(layer, file) of a parameter; everything beside layers and embeddings goes with the head."""
    family = skeleton.family
    if name.startswith(family.layers + "."):
        layer = int(name[len(family.layers) + 1 :].split(".")[0])
        return layer, layer_file(layer)
    embeds = name in (f"{family.embed}.weight", f"{family.positions}.weight")
    return (LAYER_EMBED, EMBED_FILE) if embeds else (LAYER_HEAD, HEAD_FILE)


def _variant(
    skeleton: Skeleton,
    name: str,
    form: Form,
    keep: float,
    generator: torch.Generator,
    made: dict[tuple[int, ...], Encoded],
) -> Encoded:
    """Matrices of the layers are drawn once per shape; each has the rows in another order, which is quicker to make."""
    layer, file = place_of(skeleton, name)
    shape = tuple(skeleton.model.get_parameter(name).shape)
    if len(shape) == 1 or file in (EMBED_FILE, HEAD_FILE):
        return _encoded(skeleton, name, form, keep, generator)
    if shape not in made:
        made[shape] = _encoded(skeleton, name, form, keep, generator)
    first = made[shape].info
    names = part_names(name, first.form, first.dtype, first.rank)
    parts = {
        part: replace(value, data=_turned(value, len(names) * layer + len(name)))
        for part, value in zip(names, made[shape].parts.values(), strict=True)
    }
    new = {
        "name": name,
        "layer": layer,
        "tensor_id": "0x" + tensor_id(name).hex(),
        "parts": names,
        "file": file,
        "sha256": hash_parts(part.data for part in parts.values()),
    }
    return Encoded(TensorInfo(**(first.model_dump() | new)), parts)


def _turned(part: Part, rows: int) -> memoryview:
    """The bytes of `part`, a matrix turned by some rows."""
    if len(part.shape) == 1:
        return memoryview(part.data)
    turned = np.roll(np.frombuffer(part.data, np.uint8).reshape(part.shape[0], -1), rows, axis=0)
    return np.ascontiguousarray(turned).reshape(-1).data


def _encoded(skeleton: Skeleton, name: str, form: Form, keep: float, generator: torch.Generator) -> Encoded:
    layer, file = place_of(skeleton, name)
    shape = tuple(skeleton.model.get_parameter(name).shape)
    if len(shape) == 1:
        return encode_dense(name, layer, file, torch.ones(shape))
    rows, cols = shape
    if form == "fp32":
        return encode_dense(name, layer, file, torch.randn(shape, generator=generator).mul_(0.02))
    if form == "int8" or file in (EMBED_FILE, HEAD_FILE):
        return encode_dense(name, layer, file, _small(shape, generator), int8=True)
    if form in ("int4", "int4+rank"):
        groups = -(-cols // _GROUP)
        q = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
        multipliers = torch.randint(1, 128, (rows, groups), generator=generator).to(torch.int8)
        factors = None
        if form == "int4+rank":
            u, v = (
                torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)
                for size in ((rows, RANK), (RANK, cols))
            )
            factors = Factors(u, v, torch.full((RANK,), _INT4_ROW_SCALE * _INT8_ROW_SCALE))
        base = LowBit(q, multipliers, torch.full((rows,), _INT4_ROW_SCALE), 4, _GROUP, factors)
        return encode_packed(name, layer, file, base)
    rank = max(16, int(keep * rows * cols / (rows + cols)) // 16 * 16)
    u, v = _small((rows, rank), generator), _small((rank, cols), generator)
    return encode_factors(name, layer, file, u.mul_(8), v.mul_(8), torch.float32, int8=True)


def _small(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Multiples of one step, so that rounding to int8 is quick and exact."""
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).float().mul_(_INT8_ROW_SCALE)

"""What a published model has beside its layers: embedding and head, the manifest, the files it names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import efedllm
from efedllm.compression.encode import DTYPE_NAMES, Encoded, encode_dense
from efedllm.compression.options import CompressOptions
from efedllm.compression.original import Original
from efedllm.models.checkpoint import PLAIN_NAMES
from efedllm.models.manifest import (
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_HEAD,
    FileInfo,
    Manifest,
    Quant,
    TensorInfo,
    weights_root,
)


def embed_tensors(original: Original, *, int8: bool) -> Iterator[Encoded]:
    """Embeddings, those of tokens as int8 rows if `int8`, and what belongs to them."""
    family, checkpoint = original.skeleton.family, original.checkpoint
    name = f"{family.embed}.weight"
    yield encode_dense(name, LAYER_EMBED, EMBED_FILE, checkpoint.tensor(name), int8=int8)
    for table in (family.positions, family.types):
        if table is not None:
            name = f"{table}.weight"
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, checkpoint.tensor(name))
    if family.embed_norm is not None:
        norm = original.skeleton.model.get_submodule(family.embed_norm)
        for name, _ in norm.named_parameters(prefix=family.embed_norm):
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, checkpoint.tensor(name))


def head_tensors(original: Original, *, int8: bool) -> Iterator[Encoded]:
    """The final norm, and the head where it is not the embedding."""
    skeleton, checkpoint = original.skeleton, original.checkpoint
    norm = skeleton.family.norm
    for name, _ in skeleton.model.get_submodule(norm).named_parameters(prefix=norm):
        yield encode_dense(name, LAYER_HEAD, HEAD_FILE, checkpoint.tensor(name))
    if not skeleton.tied:
        name = f"{skeleton.family.head}.weight"
        yield encode_dense(name, LAYER_HEAD, HEAD_FILE, checkpoint.tensor(name), int8=int8)


def make_manifest(
    options: CompressOptions, original: Original, entries: Sequence[TensorInfo], *, keep: float, calibrated: bool
) -> Manifest:
    """Of the tensors in `options.out`, to which config and tokenizer are copied."""
    out, skeleton = options.out, original.skeleton
    for name in PLAIN_NAMES:
        if (original.source / name).is_file():
            shutil.copyfile(original.source / name, out / name)
    plain = [name for name in PLAIN_NAMES if (out / name).is_file()]
    files = tuple(FileInfo.of(out / name) for name in sorted({*plain, *(entry.file for entry in entries)}))
    tensors = tuple(sorted(entries, key=lambda t: (t.layer, t.name)))
    named = skeleton.config.architectures
    return Manifest(
        architecture=str(named[0]) if named else type(skeleton.model).__name__,
        model_type=str(skeleton.config.model_type),
        layers=skeleton.layers,
        hidden=skeleton.hidden,
        vocab=skeleton.vocab,
        tied=skeleton.tied,
        dtype=DTYPE_NAMES[original.dtype],
        method=options.method,
        keep=float(keep),
        quant=_quant(options, original, entries),
        tensors=tensors,
        files=files,
        budget=options.share,
        calibration=original.text_hash() if calibrated else None,
        heal=options.heal,
        weights_root="0x" + weights_root(tensors, files).hex(),
        created_by=f"efedllm {efedllm.__version__}",
    )


def _quant(options: CompressOptions, original: Original, entries: Sequence[TensorInfo]) -> Quant:
    if any(entry.form == "packed" for entry in entries):
        return "packed"
    rows = any(entry.dtype == "int8" and entry.name in original.shapes for entry in entries)
    return "int8" if rows else options.quant

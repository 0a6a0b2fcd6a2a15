"""What a published directory contains, for people and for `--json`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from efedllm.models.manifest import MAX_LAYERS, Manifest, TensorInfo


def inspect(directory: Path) -> dict[str, Any]:
    """Summary of a published model. Sizes in bytes; `saved` is the fraction of the bytes of 16-bit dense weights
    that is gone.

    Raises ModelError "not-published" or "bad-manifest".
    """
    manifest = Manifest.load(directory)
    published = sum(t.nbytes for t in manifest.tensors)
    sixteen_bit = sum(2 * t.rows * t.cols for t in manifest.tensors)
    matrices, matrices_16_bit = manifest.matrix_bytes()
    in_layers = [t for t in manifest.tensors if t.layer <= MAX_LAYERS]
    factored = [t for t in in_layers if t.rank]
    return {
        "architecture": manifest.architecture,
        "model_type": manifest.model_type,
        "layers": manifest.layers,
        "hidden": manifest.hidden,
        "vocab": manifest.vocab,
        "tied": manifest.tied,
        "method": manifest.method,
        "keep": manifest.keep,
        "quant": manifest.quant,
        "parameters": sum(t.rows * t.cols for t in manifest.tensors),
        "tensors": len(manifest.tensors),
        "low_rank_tensors": len(factored),
        "ranks": sorted({t.rank for t in factored}),
        "bytes": published,
        "bytes_16_bit": sixteen_bit,
        "saved": 1 - published / sixteen_bit,
        "budget": manifest.budget,
        "matrix_bytes": matrices,
        "matrix_bytes_16_bit": matrices_16_bit,
        "matrix_saved": 1 - matrices / matrices_16_bit,
        "forms": dict(sorted(Counter(_form(t) for t in in_layers if t.cols > 1).items())),
        "certificate": None if manifest.certificate is None else manifest.certificate.model_dump(mode="json"),
        "layer_bytes": [sum(t.nbytes for t in in_layers if t.layer == i) for i in range(manifest.layers)],
        "files": {f.name: f.size for f in manifest.files},
        "weights_root": manifest.weights_root,
        "manifest_hash": "0x" + manifest.hash().hex(),
        "created_by": manifest.created_by,
    }


def _form(tensor: TensorInfo) -> str:
    """How a matrix is stored, in words: "int4 g64 + rank 8", "int8", "lowrank bfloat16"."""
    if tensor.form == "packed":
        return f"{tensor.dtype} g{tensor.group}" + (f" + rank {tensor.rank}" if tensor.rank else "")
    return tensor.dtype if tensor.form == "dense" else f"lowrank {tensor.dtype}"

"""What a published directory contains, for people and for `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efedllm.models.manifest import MAX_LAYERS, Manifest


def inspect(directory: Path) -> dict[str, Any]:
    """Summary of a published model. Sizes in bytes; `saved` is the fraction of the bytes of 16-bit dense weights
    that is gone.

    Raises ModelError "not-published" or "bad-manifest".
    """
    manifest = Manifest.load(directory)
    published = sum(t.nbytes for t in manifest.tensors)
    sixteen_bit = sum(2 * t.rows * t.cols for t in manifest.tensors)
    in_layers = [t for t in manifest.tensors if t.layer <= MAX_LAYERS]
    factored = [t for t in in_layers if t.form == "lowrank"]
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
        "layer_bytes": [sum(t.nbytes for t in in_layers if t.layer == i) for i in range(manifest.layers)],
        "files": {f.name: f.size for f in manifest.files},
        "weights_root": manifest.weights_root,
        "manifest_hash": "0x" + manifest.hash().hex(),
        "created_by": manifest.created_by,
    }

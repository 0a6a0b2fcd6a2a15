"""What a published directory contains, for people and for `--json`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from efedllm.compression.report import load_report
from efedllm.models.manifest import MAX_LAYERS, Manifest, TensorInfo


def inspect(directory: Path) -> dict[str, Any]:
    """Summary of a published model. Sizes in bytes; `saved` is the fraction of the bytes of 16-bit dense weights that
    is gone; `ranks`: of each kind of matrix, by layer, 0 where it has no factors; `compression`: what making it took,
    where that was noted.

    Raises ModelError "not-published" or "bad-manifest".
    """
    manifest = Manifest.load(directory)
    published = sum(t.nbytes for t in manifest.tensors)
    sixteen_bit = sum(2 * t.rows * t.cols for t in manifest.tensors)
    matrices, matrices_16_bit = manifest.matrix_bytes()
    in_layers = [t for t in manifest.tensors if t.layer <= MAX_LAYERS]
    factored = [t for t in in_layers if t.rank]
    report = load_report(directory, manifest.weights_root)
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
        "shared_factors": len({t.stack for t in factored if t.stack}),
        "ranks": _ranks(in_layers),
        "bytes": published,
        "bytes_16_bit": sixteen_bit,
        "saved": 1 - published / sixteen_bit,
        "budget": manifest.budget,
        "matrix_bytes": matrices,
        "matrix_bytes_16_bit": matrices_16_bit,
        "matrix_saved": 1 - matrices / matrices_16_bit,
        "forms": dict(sorted(Counter(_form(t) for t in in_layers if t.cols > 1).items())),
        "heal": manifest.heal,
        "calibration": manifest.calibration,
        "compression": None if report is None else report.model_dump(mode="json"),
        "certificate": None if manifest.certificate is None else manifest.certificate.model_dump(mode="json"),
        "layer_bytes": [sum(t.nbytes for t in in_layers if t.layer == i) for i in range(manifest.layers)],
        "files": {f.name: f.size for f in manifest.files},
        "weights_root": manifest.weights_root,
        "manifest_hash": "0x" + manifest.hash().hex(),
        "created_by": manifest.created_by,
    }


def _ranks(tensors: list[TensorInfo]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for tensor in sorted((t for t in tensors if t.cols > 1), key=lambda t: t.layer):
        # "model.layers.3.mlp.up_proj.weight" -> "mlp.up_proj"
        kind = tensor.name.removesuffix(".weight").partition(f".{tensor.layer}.")[2]
        found.setdefault(kind, []).append(tensor.rank)
    return found


def _form(tensor: TensorInfo) -> str:
    """How a matrix is stored, in words: "int4 g64 + rank 8", "int8", "lowrank bfloat16"."""
    if tensor.form == "packed":
        return f"{tensor.dtype} g{tensor.group}" + (f" + rank {tensor.rank}" if tensor.rank else "")
    if tensor.form == "dense":
        return tensor.dtype
    return f"lowrank {tensor.dtype}" + (" shared" if tensor.stack else "")

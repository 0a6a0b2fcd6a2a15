"""A node that cheats, for the demo and for tests: the real node program over weights that are not the published ones.

`python -m efedllm_deploy.adversary run ...` takes the flags of `python -m efedllm_node run`, and
EFEDLLM_ADVERSARY_NOISE: the relative size of the error put on the weights of every layer (default 0.01). Roles do not
import each other, so the node's modules are loaded by name when this runs; the one thing changed is the directory that
its engine is loaded from.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

NOISE_VARIABLE = "EFEDLLM_ADVERSARY_NOISE"

_LAYER_FILES = "layer-*.safetensors"


def falsify(published: Path, out: Path, noise: float, seed: int = 1) -> Path:
    """A copy of a published model in `out` whose layers are a relative error of `noise` (standard deviation) off.

    The error is on every number of a float matrix, and of an integer matrix on the scale of every row: its integers
    could not hold an error of less than their step.
    """
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    shutil.copytree(published, out, ignore=shutil.ignore_patterns(_LAYER_FILES, "*.part"), dirs_exist_ok=True)
    changed = 0
    for path in sorted(published.glob(_LAYER_FILES)):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and (tensor.dim() == 2 or name.endswith(".scale")):
                error = 1 + noise * torch.randn(tensor.shape, generator=generator)
                tensors[name] = (tensor.float() * error).to(tensor.dtype)
                changed += 1
        save_file(tensors, out / path.name)
    if changed == 0:
        raise RuntimeError("the model has no weights to falsify")
    return out


def main() -> None:
    """Run the node's own command line with an engine over falsified weights."""
    noise = float(os.environ.get(NOISE_VARIABLE, "0.01"))
    node_app: Any = importlib.import_module("efedllm_node.app")
    node_cli: Any = importlib.import_module("efedllm_node.cli")
    load = node_app._load

    def load_falsified(config: Any, directory: Path, *args: Any, **options: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="efedllm-adversary-") as out:
            # An engine keeps its files mapped, so they may be unlinked once it is there.
            return load(config, falsify(directory, Path(out), noise), *args, **options)

    node_app._load = load_falsified
    node_cli.app()


if __name__ == "__main__":
    main()

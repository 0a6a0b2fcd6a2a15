"""A node that cheats, for the demo and for tests: the real node program over weights that are not the published ones.

`python -m deploy.adversary run ...` takes the flags of `python -m node run`, and EFEDLLM_ADVERSARY_NOISE: the relative
size of the error put on every matrix (default 0.01). Roles do not import each other, so the node's modules are loaded
by name when this runs; the one thing changed is the executor that the node is given.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

NOISE_VARIABLE = "EFEDLLM_ADVERSARY_NOISE"

_MATRICES = ("weight", "u", "v")


def falsify(executor: Any, noise: float, seed: int = 1) -> Any:
    """Put a relative error of `noise` (standard deviation) on every matrix of the executor's layers, in memory."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    changed = 0
    for layer in executor._modules.layers:
        for module in layer.modules():
            for name, matrix in list(module.named_buffers(recurse=False)):
                if name in _MATRICES and matrix.dim() == 2:
                    error = 1 + noise * torch.randn(matrix.shape, generator=generator)
                    module._buffers[name] = matrix * error
                    changed += 1
    if changed == 0:
        raise RuntimeError("the executor has no matrices to falsify")
    return executor


def main() -> None:
    """Run the node's own command line with a falsified executor."""
    noise = float(os.environ.get(NOISE_VARIABLE, "0.01"))
    node_app: Any = importlib.import_module("node.app")
    node_cli: Any = importlib.import_module("node.cli")
    # The command looks `run_node` up when it runs.
    node_app.run_node = functools.partial(node_app.run_node, executor_wrapper=functools.partial(falsify, noise=noise))
    node_cli.app()


if __name__ == "__main__":
    main()

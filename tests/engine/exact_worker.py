"""Run as a process of its own, because instruction sets are chosen when libraries load: prints hashes as JSON.

usage: python -m tests.engine.exact_worker THREADS DIRECTORY...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from efedllm.engine.exact.products import exact_kernels
from efedllm.models.manifest import Manifest
from tests.engine.exact_helpers import ExactPipeline, digest, load_parts, stream_ids


def int8_product_is_exact() -> bool:
    """Whether torch's int8 product of the largest numbers is right: some instruction sets saturate sums of two."""
    left, right = (torch.tensor(signs, dtype=torch.int8).repeat(32, 32) for signs in ([127, -128], [-128, 127]))
    pairs = [(a, b) for a in (left, right) for b in (left, right)]
    return all(torch.equal(torch._int_mm(a, b.t()).long(), a.long() @ b.long().t()) for a, b in pairs)


def main(threads: int, directories: list[Path]) -> dict[str, object]:
    kernels = exact_kernels()
    hashes: dict[str, dict[str, str]] = {}
    for directory in directories:
        tokens = stream_ids("prompt", 40, min(Manifest.load(directory).vocab, 4096))
        hashes[directory.name] = {
            kernel: digest(ExactPipeline(load_parts(directory, 1, kernel, threads)).alone(tokens, (30, 31)))
            for kernel in kernels
        }
    return {
        "kernels": kernels,
        "int8_product_is_exact": int8_product_is_exact(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "hashes": hashes,
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])))

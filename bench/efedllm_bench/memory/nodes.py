"""What one node holds and sends when a model is spread over 1 to 8 nodes, each a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from efedllm.commitments.canonical import WireDtype, encode
from efedllm.compression import CompressOptions, compress
from efedllm.errors import EfedError
from efedllm.models.manifest import Manifest
from efedllm.wire.activations import AckMsg, ActMsg
from efedllm.wire.frames import encode as encode_frame
from efedllm_bench.memory.process import Options
from efedllm_bench.memory.synthetic import LlamaShape, publish_synthetic

Say = Callable[[str], None]

NODES = (1, 2, 4, 8)
PROMPT, TOKENS = 128, 16
_LATENCIES_MS = (0, 5, 50)


def measure(model: Path, say: Say) -> dict[str, Any]:
    """Weights, cache and peak resident memory of every node, in bytes, and what crosses the wire for one token."""
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-memory-") as folder:
        published, warm = Path(folder) / "model", Path(folder) / "warm"
        compress(CompressOptions(str(model), published, method="int8", quant="int8"))
        publish_synthetic(warm, LlamaShape(64, 128, 2, 4, 2, 96), "int8")
        manifest = Manifest.load(published)
        splits = []
        for nodes in NODES:
            bounds = [manifest.layers * i // nodes for i in range(nodes + 1)]
            say(f"{nodes} nodes of the bundled model, each in its own process")
            each = [_one(published, warm, lo, hi) for lo, hi in pairwise(bounds)]
            wire = bytes_per_token(nodes, manifest.hidden)
            splits.append(
                {
                    "nodes": nodes,
                    "weights_per_node": [node["weight_bytes"] for node in each],
                    "weights_sum": sum(node["weight_bytes"] for node in each),
                    "largest_peak_over_baseline": max(node["peak"] - node["baseline"] for node in each),
                    "peaks_over_baseline_sum": sum(node["peak"] - node["baseline"] for node in each),
                    "largest_peak_with_libraries": max(node["peak"] for node in each),
                    "peaks_with_libraries_sum": sum(node["peak"] for node in each),
                    "wire_bytes_per_token": wire,
                    "added_ms_per_token_at_latency_ms": {str(ms): ms * nodes for ms in _LATENCIES_MS},
                }
            )
        return {
            "model": model.name,
            "prompt": PROMPT,
            "tokens": TOKENS,
            "file_bytes": sum(info.size for info in manifest.files if info.name.endswith(".safetensors")),
            "splits": splits,
        }


def _one(published: Path, warm: Path, lo: int, hi: int) -> dict[str, Any]:
    options = Options(str(published), str(warm), True, lo, hi, None, PROMPT, TOKENS)
    command = [sys.executable, "-m", "efedllm_bench.memory.process", json.dumps(asdict(options))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise EfedError("bench-failed", f"Layers {lo}:{hi} could not be measured: {done.stderr.strip()[-300:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def bytes_per_token(nodes: int, hidden: int) -> int:
    """Bytes of frames that one decoded token puts on the wire between `nodes` nodes and to the client: a row of states
    to every next node, the token to the first one and to the client, and an acknowledgement of each.
    """
    row = encode_frame(_act(hidden, WireDtype.F32).to_frame())
    token = encode_frame(_act(1, WireDtype.I32).to_frame())
    ack = encode_frame(AckMsg(bytes(32), 1, 0, 1, bytes(65)).to_frame())
    # On a route of one node the token that it feeds is its own.
    tokens = 1 if nodes == 1 else 2
    return (nodes - 1) * (len(row) + len(ack)) + tokens * (len(token) + len(ack))


def _act(dim: int, dtype: WireDtype) -> ActMsg:
    numbers = np.zeros((1, dim), np.int32 if dtype is WireDtype.I32 else np.float32)
    boundary = 0 if dtype is WireDtype.I32 else 1
    return ActMsg(bytes(32), boundary, 0, 1, dtype, dim, bytes(32), bytes(65), encode(numbers, dtype))

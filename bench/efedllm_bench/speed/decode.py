"""Decoding with a model of 1.1 billion parameters on one thread: bf16 in transformers against our engines at 70 % fewer
bytes.

The weights are random and made in place: speed does not depend on what they say. The models take turns token by token,
so that other work on the machine meets all of them. Time is that of the one thread's processor (waiting for a core that
others use does not count; waiting for memory does); a figure is the median token. Wall time is noted beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM

from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.models.manifest import EMBED_FILE, Manifest
from efedllm_bench.memory.run import machine
from efedllm_bench.memory.speed import last_level
from efedllm_bench.memory.synthetic import RANK, LlamaShape, publish_synthetic
from efedllm_bench.speed.timing import tenth

SHAPE = LlamaShape(2048, 5632, 22, 32, 4, 32000, 2048)
"""TinyLlama-1.1B."""

CONTEXT = 64
_READ = 8 << 20
_COLD = 8  # times the last-level cache
_WARM = 2


@dataclass(frozen=True)
class Decoded:
    """`bytes`: weights and cache that one token reads; `of_bandwidth`: bytes over time, of what a plain read reaches;
    milliseconds of processor time, `best_ms` their 10th percentile, `wall_ms` the median of wall time."""

    name: str
    bytes: int
    ms_per_token: float
    best_ms: float
    wall_ms: float
    tokens_per_second: float
    faster_than_bf16: float
    of_bandwidth: float


class Model(Protocol):
    """One sequence after its prompt."""

    name: str
    bytes: int

    def token(self) -> None:
        """Decode one greedy token."""


class Dense:
    """LlamaForCausalLM in bfloat16."""

    def __init__(self, shape: LlamaShape, attention: str) -> None:
        self.name = f"transformers bf16 {attention}"
        config = shape.config()
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model = model.to_empty(device="cpu").to(torch.bfloat16).eval()
        some = torch.randn(1 << 16, generator=torch.Generator().manual_seed(1)).mul_(0.02).to(torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1)
                else:
                    flat = parameter.view(-1)
                    flat.copy_(some.repeat(-(-len(flat) // len(some)))[: len(flat)])
        # Made on the meta device, which has no values for what is computed at construction.
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        self._model = model
        self.attend_with(attention)
        head = shape.vocab * shape.hidden
        layers = sum(p.numel() for p in model.model.layers.parameters())
        self.bytes = 2 * (layers + head) + 2 * 2 * shape.layers * shape.kv_heads * shape.hidden // shape.heads * CONTEXT

    def attend_with(self, attention: str) -> None:
        """ "eager" or "sdpa", from a new sequence on."""
        self.name = f"transformers bf16 {attention}"
        self._model.set_attn_implementation(attention)
        self._cache = DynamicCache(config=self._model.config)
        self._step(torch.arange(CONTEXT).view(1, -1))

    def _step(self, ids: torch.Tensor) -> None:
        with torch.inference_mode():
            out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._next = out.logits[:, -1].argmax(-1, keepdim=True)

    def token(self) -> None:
        self._step(self._next)


class Ours:
    """One of our engines over the whole published model."""

    def __init__(self, name: str, engine: ShardEngine | ExactShardEngine, manifest: Manifest) -> None:
        self.name = name
        self._engine = engine
        self._sequence = engine.new_sequence()
        self._next = 0
        self._step(np.arange(CONTEXT, dtype=np.int32))
        per_position = self._sequence.nbytes / 64  # a cache grows in blocks of 64 positions
        read = sum(t.nbytes for t in manifest.tensors if t.file != EMBED_FILE)
        self.bytes = int(read + per_position * CONTEXT)

    def _step(self, ids: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        states = self._engine.step([StepItem(self._sequence, ids)])[0]
        self._next = int(self._engine.logits(states[-1:]).argmax())

    def token(self) -> None:
        self._step(np.array([self._next], dtype=np.int32))


def run(tokens: int, say: Callable[[str], None], shape: LlamaShape = SHAPE) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        say("writing the published model")
        manifest = publish_synthetic(Path(folder), shape, "int4+rank")
        published, dense = manifest.matrix_bytes()
        say("loading our engines")
        floats = Ours("float profile", ShardEngine.load(Path(folder), 0, shape.layers), manifest)
        engine = ExactShardEngine.load(Path(folder), 0, shape.layers)
        exact = Ours("exact profile", engine, manifest)
        say("making the dense model")
        base = Dense(shape, "sdpa")
        base.attend_with(_better_attention(base))
        say(f"decoding {tokens} tokens each")
        read = _Bandwidth()
        models: list[Model] = [base, floats, exact]
        taken: dict[str, list[float]] = {m.name: [] for m in models}
        wall: dict[str, list[float]] = {m.name: [] for m in models}
        for turn in range(tokens + _WARM):
            for model in models:
                start, began = time.thread_time(), time.perf_counter()
                model.token()
                if turn >= _WARM:
                    taken[model.name].append(time.thread_time() - start)
                    wall[model.name].append(time.perf_counter() - began)
            read.once()
    slow = statistics.median(taken[base.name])
    rows = []
    for m in models:
        middle, best = statistics.median(taken[m.name]), tenth(taken[m.name])
        rows.append(
            Decoded(
                m.name,
                m.bytes,
                round(middle * 1e3, 2),
                round(best * 1e3, 2),
                round(statistics.median(wall[m.name]) * 1e3, 2),
                round(1 / middle, 2),
                round(slow / middle, 2),
                round(m.bytes / best / read.rate, 3),
            )
        )
    return {
        "machine": machine(),
        "threads": 1,
        "shape": asdict(shape),
        "context": CONTEXT,
        "tokens": tokens,
        "form": f"int4 in groups of 64 with int8 factors of rank {RANK}, int8 head",
        "bytes_saved_of_16_bit_matrices": round(1 - published / dense, 4),
        "exact_kernel": str(engine.kernel),
        "bandwidth_gbps": round(read.rate / 1e9, 2),
        "decoded": [asdict(row) for row in rows],
    }


def _better_attention(model: Dense) -> str:
    """The faster of transformers' two on this machine."""
    times: dict[str, list[float]] = {}
    for attention in ("eager", "sdpa"):
        model.attend_with(attention)
        for _ in range(4):
            start = time.thread_time()
            model.token()
            times.setdefault(attention, []).append(time.thread_time() - start)
    return min(times, key=lambda attention: min(times[attention]))


class _Bandwidth:
    """Reads a piece of a buffer of 8 times the last-level cache at a time."""

    def __init__(self) -> None:
        self._pieces = torch.split(torch.ones(_COLD * last_level() // 8, dtype=torch.int64), _READ // 8)
        self._at = 0
        self._times: list[float] = []

    def once(self) -> None:
        for _ in range(4):
            piece = self._pieces[self._at % len(self._pieces)]
            self._at += 1
            start = time.thread_time()
            piece.sum()
            self._times.append((time.thread_time() - start) * _READ / piece.nbytes)

    @property
    def rate(self) -> float:
        """Bytes per second, of the 10th percentile of the reads."""
        return _READ / tenth(self._times)

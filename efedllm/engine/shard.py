"""ShardEngine: a contiguous range of layers of a published model, in float32, numpy in and numpy out."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from efedllm.engine.attention import ATTENTION_NAME, Ragged
from efedllm.engine.base import EngineShape, RangeEngine, engine_shape, packed_positions
from efedllm.engine.cache import KVCache
from efedllm.engine.load import ShardModules, load_modules
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.models.families import build_skeleton, read_config
from efedllm.models.source import open_published


class ShardEngine(RangeEngine):
    """Executor (see `protocol`) over published weights. Thread-confined: load and call it on one thread.

    Weights are expanded to float32 when loaded; the factors of a low-rank matrix stay apart. float32 files stay
    memory-mapped.
    """

    def __init__(self, shape: EngineShape, modules: ShardModules) -> None:
        super().__init__(shape)
        self._modules = modules

    @classmethod
    def load(
        cls, model_dir: Path, lo: int, hi: int, *, threads: int = 1, verify_root: bytes | None = None
    ) -> ShardEngine:
        """Load layers [lo, hi) of the published model in `model_dir`.

        With `verify_root` every byte used is checked against that weights root first; ModelError "wrong-root" or
        "corrupt-weights" (naming the file) otherwise. `threads` sets the compute threads of this thread's torch
        operations: keep it at cores / engines on a host, because waiting threads make every call slower.
        """
        manifest = open_published(model_dir, verify_root, lo, hi)
        torch.set_num_threads(threads)
        skeleton = build_skeleton(read_config(model_dir), ATTENTION_NAME)
        shape = engine_shape(model_dir, manifest, skeleton, lo, hi)
        with torch.inference_mode():
            modules = load_modules(model_dir, manifest, skeleton, lo, hi)
        return cls(shape, modules)

    @property
    def weight_bytes(self) -> int:
        return self._modules.nbytes

    def new_sequence(self) -> KVCache:
        return KVCache(self.hi - self.lo, self._shape.kv_heads, self._shape.head_dim)

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        if not batch:
            return []
        caches = self._check(batch, KVCache)
        counts = tuple(len(item.inputs) for item in batch)
        positions = packed_positions(caches, counts)
        packed = np.concatenate([item.inputs for item in batch])
        with torch.inference_mode():
            where = torch.from_numpy(positions)
            states = self._embedded(packed, where) if self.has_embedding else torch.from_numpy(packed)
            for cache, count in zip(caches, counts, strict=True):
                cache.reserve(count)
            states = self._run(states.unsqueeze(0), where.unsqueeze(0), Ragged(caches, counts, self.lo))
            for cache, count in zip(caches, counts, strict=True):
                cache.commit(count)
            return [part.numpy() for part in torch.split(states[0], list(counts))]

    def _run(self, states: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        rotary = self._modules.rotary
        extra = {} if rotary is None else {"position_embeddings": rotary(states, positions)}
        for layer in self._modules.layers:
            states = layer(states, attention_mask=None, position_ids=positions, ragged=ragged, **extra)
        return states

    def logits(self, hidden: Float32) -> Float32:
        norm, head = self._modules.norm, self._modules.head
        if norm is None or head is None:
            raise self._no_head()
        self._check_states(hidden)
        with torch.inference_mode():
            out: Tensor = head(norm(torch.from_numpy(np.array(hidden, dtype=np.float32))))
            return out.numpy()

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        where = self._check_embed(ids, positions)
        with torch.inference_mode():
            return self._embedded(ids, torch.from_numpy(where)).numpy()

    def _embedded(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.generic]], positions: Tensor) -> Tensor:
        tokens, learned = self._modules.embed, self._modules.positions
        assert tokens is not None
        states = embedding(torch.from_numpy(ids.astype(np.int64)), tokens)
        return states if learned is None else states + embedding(positions, learned)

"""ShardEngine: a contiguous range of layers of a published model, in float32, numpy in and numpy out."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from efedllm.engine.attention import ATTENTION_NAME, Ragged
from efedllm.engine.cache import KVCache
from efedllm.engine.load import ShardModules, load_modules
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.errors import ModelError
from efedllm.models.families import build_skeleton, read_config
from efedllm.models.source import open_published


@dataclass(frozen=True)
class _Shape:
    lo: int
    hi: int
    layers: int
    hidden: int
    vocab: int
    max_positions: int
    kv_heads: int
    head_dim: int


class ShardEngine:
    """Executor (see `protocol`) over published weights. Thread-confined: load and call it on one thread.

    Weights are expanded to float32 when loaded; the factors of a low-rank matrix stay apart. float32 files stay
    memory-mapped.
    """

    def __init__(self, shape: _Shape, modules: ShardModules) -> None:
        self._shape = shape
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
        config = read_config(model_dir)
        torch.set_num_threads(threads)
        skeleton = build_skeleton(config, ATTENTION_NAME)
        said = (manifest.layers, manifest.hidden, manifest.vocab, manifest.tied)
        found = (skeleton.layers, skeleton.hidden, skeleton.vocab, skeleton.tied)
        if said != found:
            raise ModelError(
                "bad-manifest",
                f"The manifest and config.json of {model_dir.name} describe different models.",
                "Fetch the model again from its publisher.",
            )
        heads = int(config.num_attention_heads)
        shape = _Shape(
            lo=lo,
            hi=hi,
            layers=skeleton.layers,
            hidden=skeleton.hidden,
            vocab=skeleton.vocab,
            max_positions=int(config.max_position_embeddings),
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or skeleton.hidden // heads),
        )
        with torch.inference_mode():
            modules = load_modules(model_dir, manifest, skeleton, lo, hi)
        return cls(shape, modules)

    @property
    def lo(self) -> int:
        return self._shape.lo

    @property
    def hi(self) -> int:
        return self._shape.hi

    @property
    def layers(self) -> int:
        return self._shape.layers

    @property
    def hidden(self) -> int:
        return self._shape.hidden

    @property
    def vocab(self) -> int:
        return self._shape.vocab

    @property
    def max_positions(self) -> int:
        return self._shape.max_positions

    @property
    def has_embedding(self) -> bool:
        return self._shape.lo == 0

    @property
    def has_head(self) -> bool:
        return self._shape.hi == self._shape.layers

    @property
    def weight_bytes(self) -> int:
        return self._modules.nbytes

    def new_sequence(self) -> KVCache:
        return KVCache(self.hi - self.lo, self._shape.kv_heads, self._shape.head_dim)

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        if not batch:
            return []
        caches = self._check(batch)
        counts = tuple(len(item.inputs) for item in batch)
        positions = np.concatenate(
            [np.arange(c.length, c.length + n, dtype=np.int64) for c, n in zip(caches, counts, strict=True)]
        )
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
            raise ModelError(
                "no-head", f"Layers {self.lo}:{self.hi} do not include the head.", "Ask the node of the last layers."
            )
        self._check_states(hidden)
        with torch.inference_mode():
            out: Tensor = head(norm(torch.from_numpy(np.array(hidden, dtype=np.float32))))
            return out.numpy()

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        if not self.has_embedding:
            raise ModelError(
                "no-embedding", f"Layers {self.lo}:{self.hi} do not include the embedding.", "Use layers from 0."
            )
        self._check_ids(ids)
        where = np.arange(len(ids)) if positions is None else positions
        if where.shape != ids.shape or len(where) == 0 or where.min() < 0 or where.max() >= self.max_positions:
            raise _bad_input(f"positions must be {len(ids)} integers below {self.max_positions}")
        with torch.inference_mode():
            return self._embedded(ids, torch.from_numpy(where.astype(np.int64))).numpy()

    def _embedded(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.generic]], positions: Tensor) -> Tensor:
        tokens, learned = self._modules.embed, self._modules.positions
        assert tokens is not None
        states = embedding(torch.from_numpy(ids.astype(np.int64)), tokens)
        return states if learned is None else states + embedding(positions, learned)

    def _check(self, batch: SequenceOf[StepItem]) -> tuple[KVCache, ...]:
        caches: list[KVCache] = []
        for item in batch:
            cache = item.sequence
            if not isinstance(cache, KVCache) or any(cache is other for other in caches):
                raise _bad_input("each item needs a sequence of this engine, once per batch")
            if self.has_embedding:
                self._check_ids(item.inputs)
            else:
                self._check_states(item.inputs)
            if cache.length + len(item.inputs) > self.max_positions:
                raise ModelError(
                    "context-exceeded",
                    f"The sequence would reach {cache.length + len(item.inputs)} positions; "
                    f"this model has {self.max_positions}.",
                    "Use a shorter prompt or ask for fewer tokens.",
                )
            caches.append(cache)
        return tuple(caches)

    def _check_ids(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype != np.int32:
            raise _bad_input(f"expected int32 [n] token ids, n >= 1, not {ids.dtype}{list(ids.shape)}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab:
            raise _bad_input(f"token ids must lie in 0..{self.vocab - 1}")

    def _check_states(self, states: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        if states.ndim != 2 or len(states) == 0 or states.shape[1] != self.hidden or states.dtype != np.float32:
            raise _bad_input(
                f"expected float32 [n, {self.hidden}] states, n >= 1, not {states.dtype}{list(states.shape)}"
            )


def _bad_input(what: str) -> ModelError:
    return ModelError("bad-input", f"The engine cannot run this batch: {what}.", "Check the model and layer range.")

"""Hops of a float model that gradients flow through: the engine's own modules, without caches, on whole sequences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.attention import ATTENTION_NAME, Ragged
from efedllm.engine.cache import KVCache
from efedllm.engine.load import ShardModules, load_modules
from efedllm.models.families import read_config
from efedllm.models.manifest import Manifest
from efedllm.models.skeleton import build_skeleton


class _Passing(KVCache):
    """Keeps nothing: keys and values of the whole sequence come at once, and stay part of the graph."""

    def __init__(self) -> None:
        super().__init__(0, 0, 0)

    def append(self, slot: int, key: Tensor, value: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        del slot, offset
        return key, value


@dataclass(frozen=True)
class DifferentiableHop:
    """Layers [lo, hi) of a published float model in float32, as `ShardEngine` computes a prefill of them."""

    modules: ShardModules
    lo: int

    @classmethod
    def load(cls, directory: Path, lo: int, hi: int) -> DifferentiableHop:
        """On the calling thread. Raises ModelError as `load_modules` does."""
        skeleton = build_skeleton(read_config(directory), ATTENTION_NAME)
        return cls(load_modules(directory, Manifest.load(directory), skeleton, lo, hi, native=False), lo)

    def embed(self, ids: npt.NDArray[np.integer]) -> Tensor:
        """Token ids [n] -> float32 [n, hidden]; the first hop's."""
        assert self.modules.embed is not None
        assert self.modules.positions is None
        embedded: Tensor = self.modules.embed(torch.from_numpy(ids.astype(np.int64)))
        return embedded

    def states(self, x: Tensor, *, sequences: int = 1) -> Tensor:
        """float32 [n, hidden] of `sequences` sequences of one length, one after the other -> the same after the layers,
        each sequence from its first position."""
        length = len(x) // sequences
        where = torch.arange(length).repeat(sequences).unsqueeze(0)
        states = x.unsqueeze(0)
        rotary = self.modules.rotary
        extra = {} if rotary is None else {"position_embeddings": rotary(states, where)}
        ragged = Ragged((_Passing(),) * sequences, (length,) * sequences, (0,) * sequences, self.lo)
        for layer in self.modules.layers:
            states = layer(states, attention_mask=None, position_ids=where, ragged=ragged, **extra)
        return states[0]

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, hidden] -> [n, vocab]; the last hop's."""
        norm, head = self.modules.norm, self.modules.head
        assert norm is not None
        assert head is not None
        found: Tensor = head(norm(x))
        return found

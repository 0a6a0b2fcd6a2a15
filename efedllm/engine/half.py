"""HalfShardEngine: a float range computed in bfloat16, for machines that are fast at nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from efedllm.engine.attention import ATTENTION_NAME
from efedllm.engine.base import engine_shape
from efedllm.engine.cache import KVCache
from efedllm.engine.load import load_modules
from efedllm.engine.protocol import Float32
from efedllm.engine.shard import BLOCK_TOKENS, ShardEngine
from efedllm.models.families import read_config
from efedllm.models.skeleton import build_skeleton
from efedllm.models.source import open_published


class HalfShardEngine(ShardEngine):
    """A ShardEngine whose layers, norm and head compute in bfloat16; rows go in and out in float32.

    Its rows stray by some hundredths of what the layers add: a node that runs it says so in every commitment, and is
    measured by limits of its own, which tell gross cheats only.
    """

    compute = "bfloat16"

    @classmethod
    def load_half(cls, model_dir: Path, lo: int, hi: int, *, threads: int = 1) -> HalfShardEngine:
        """Load layers [lo, hi); see `ShardEngine.load`. Everything is held in memory."""
        manifest = open_published(model_dir, None, lo, hi)
        torch.set_num_threads(threads)
        skeleton = build_skeleton(read_config(model_dir), ATTENTION_NAME)
        shape = engine_shape(model_dir, manifest, skeleton.config, lo, hi)
        with torch.inference_mode():
            modules = load_modules(model_dir, manifest, skeleton, lo, hi, native=False)
            for module in (*modules.layers, modules.norm, modules.head):
                if module is not None:
                    module.bfloat16()
        return cls(shape, modules, block=BLOCK_TOKENS)

    def _run(self, states: Tensor, positions: Tensor, caches: tuple[KVCache, ...], counts: tuple[int, ...]) -> Tensor:
        return super()._run(states.bfloat16(), positions, caches, counts).float()

    def logits(self, hidden: Float32) -> Float32:
        norm, head = self._modules.norm, self._modules.head
        if norm is None or head is None:
            raise self._no_head()
        self._check_states(hidden)
        with torch.inference_mode():
            states = torch.from_numpy(np.array(hidden, dtype=np.float32)).bfloat16()
            out: Tensor = head(norm(states)).float()
            return out.numpy()

"""ShardEngine: a contiguous range of layers of a published model, in float32, numpy in and numpy out."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from efedllm.engine.attention import ATTENTION_NAME, Ragged
from efedllm.engine.base import EngineShape, RangeEngine, engine_shape, packed_positions
from efedllm.engine.blocks import token_blocks
from efedllm.engine.cache import KVCache
from efedllm.engine.load import ShardFiles, ShardModules, held_by, load_modules
from efedllm.engine.memory.budgeted_layers import Room
from efedllm.engine.memory.layer_streaming import TierReport, check_device, open_tiers, slowdown
from efedllm.engine.memory.step_memory import Working, widest
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.models.families import read_config
from efedllm.models.skeleton import build_skeleton
from efedllm.models.source import open_published

BLOCK_TOKENS = 256
"""Tokens that a layer computes at once: `efedllm bench memory` measures why."""


class ShardEngine(RangeEngine):
    """Executor (see `protocol`) over published weights. Thread-confined: load and call it on one thread.

    Integer matrices stay as small as published where the native kernels run them; other weights, and all of them
    elsewhere, are expanded to float32 when loaded. The factors of a low-rank matrix stay apart. float32 files stay
    memory-mapped.
    """

    def __init__(
        self,
        shape: EngineShape,
        modules: ShardModules,
        *,
        room: Room[nn.Module] | None = None,
        block: int = BLOCK_TOKENS,
        device: str = "cpu",
    ) -> None:
        super().__init__(shape)
        self._modules = modules
        self._room = room
        self._block = block
        self._device = device
        self._report: TierReport | None = None

    @classmethod
    def load(
        cls,
        model_dir: Path,
        lo: int,
        hi: int,
        *,
        threads: int = 1,
        verify_root: bytes | None = None,
        ram: int | None = None,
        device: str = "cpu",
        block: int = BLOCK_TOKENS,
    ) -> ShardEngine:
        """Load layers [lo, hi) of the published model in `model_dir`.

        With `verify_root` every byte used is checked against that weights root first; ModelError "wrong-root" or
        "corrupt-weights" (naming the file) otherwise. `threads` sets the compute threads of this thread's torch
        operations: keep it at cores / engines on a host, because waiting threads make every call slower.

        `ram`: bytes for weights, caches and activations; layers that do not fit are prepared from the mapped files in
        every step. ModelError "ram-exceeded" when two layers and the smallest step do not fit, and from `step` when a
        cache outgrows the rest. `device` "cuda" computes on a GPU, whose memory is then what `ram` is about; ModelError
        "no-device" without one. `block`: tokens that a layer computes at once.
        """
        check_device(device)
        manifest = open_published(model_dir, verify_root, lo, hi)
        torch.set_num_threads(threads)
        skeleton = build_skeleton(read_config(model_dir), ATTENTION_NAME)
        shape = engine_shape(model_dir, manifest, skeleton.config, lo, hi)
        with torch.inference_mode():
            if ram is None:
                modules = load_modules(model_dir, manifest, skeleton, lo, hi, native=device == "cpu")
                return cls(shape, modules.to(device), block=block, device=device)
            files = ShardFiles(model_dir, manifest, skeleton, lo, hi, native=device == "cpu")
            modules = files.modules(()).to(device)
            working = Working(shape, widest(manifest, lo, hi), block, exact=False)
            tiers, seconds = open_tiers(
                range(lo, hi),
                files.path,
                lambda file, index: files.layer(file, index).to(device),
                held_by,
                partial(_decode_one, shape, modules, device),
                total=ram,
                fixed=modules.nbytes,
                working=working.step(1, 64) + KVCache(hi - lo, shape.kv_heads, shape.head_dim).growth(1),
                # The largest matrix once more in float32 with its scales, and unpacked to bytes.
                temporary=6 * max(t.rows * t.cols for t in manifest.tensors_for(lo, hi)),
            )
            files.check_all_used()
        engine = cls(shape, modules, room=Room(tiers, working), block=block, device=device)
        engine._report = TierReport(ram, hi - lo, *slowdown(engine, tiers, seconds))
        return engine

    @property
    def tiers(self) -> TierReport | None:
        """How the layers lie in memory; None without a budget."""
        return self._report

    @property
    def weight_bytes(self) -> int:
        return self._modules.nbytes if self._room is None else self._room.nbytes

    def new_sequence(self) -> KVCache:
        cache = KVCache(self.hi - self.lo, self._shape.kv_heads, self._shape.head_dim, self._device)
        if self._room is not None:
            self._room.track(cache)
        return cache

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        if not batch:
            return []
        caches = self._check(batch, KVCache)
        counts = tuple(len(item.inputs) for item in batch)
        if self._room is not None:
            self._room.for_step(caches, counts)
        positions = packed_positions(caches, counts)
        packed = np.concatenate([item.inputs for item in batch])
        with torch.inference_mode():
            where = torch.from_numpy(positions).to(self._device)
            states = self._embedded(packed, where) if self.has_embedding else torch.from_numpy(packed).to(self._device)
            for cache, count in zip(caches, counts, strict=True):
                cache.reserve(count)
            states = self._run(states.unsqueeze(0), where.unsqueeze(0), caches, counts)
            for cache, count in zip(caches, counts, strict=True):
                cache.commit(count)
            return [part.numpy() for part in torch.split(states[0].cpu(), list(counts))]

    def _run(self, states: Tensor, positions: Tensor, caches: tuple[KVCache, ...], counts: tuple[int, ...]) -> Tensor:
        """The layers, block by block within each, so that a layer's weights are fetched once for all tokens."""
        rotary = self._modules.rotary
        angles = None if rotary is None else rotary(states, positions)
        blocks = token_blocks(caches, counts, self._block)

        def through(_index: int, layer: nn.Module) -> None:
            nonlocal states
            outputs = []
            for block in blocks:
                rows = block.rows
                extra = {} if angles is None else {"position_embeddings": (angles[0][:, rows], angles[1][:, rows])}
                ragged = Ragged(block.caches, block.counts, block.offsets, self.lo)
                outputs.append(
                    layer(states[:, rows], attention_mask=None, position_ids=positions[:, rows], ragged=ragged, **extra)
                )
            states = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

        self._each_layer(through)
        return states

    def _each_layer(self, use: Callable[[int, nn.Module], None]) -> None:
        if self._room is not None:
            self._room.each_layer(use)
            return
        for index, layer in enumerate(self._modules.layers):
            use(index, layer)

    def logits(self, hidden: Float32) -> Float32:
        norm, head = self._modules.norm, self._modules.head
        if norm is None or head is None:
            raise self._no_head()
        self._check_states(hidden)
        if self._room is not None:
            self._room.for_logits(len(hidden))
        with torch.inference_mode():
            states = torch.from_numpy(np.array(hidden, dtype=np.float32)).to(self._device)
            out: Tensor = head(norm(states))
            return out.cpu().numpy()

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        where = self._check_embed(ids, positions)
        with torch.inference_mode():
            return self._embedded(ids, torch.from_numpy(where).to(self._device)).cpu().numpy()

    def _embedded(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.generic]], positions: Tensor) -> Tensor:
        tokens, learned = self._modules.embed, self._modules.positions
        assert tokens is not None
        states: Tensor = tokens(torch.from_numpy(ids.astype(np.int64)).to(self._device))
        return states if learned is None else states + learned(positions)


def _decode_one(shape: EngineShape, modules: ShardModules, device: str, index: int, layer: nn.Module) -> None:
    """One token at position 0 through one layer."""
    cache = KVCache(1, shape.kv_heads, shape.head_dim, device)
    cache.reserve(1)
    states = torch.linspace(-1, 1, shape.hidden, device=device).view(1, 1, -1)
    where = torch.zeros(1, 1, dtype=torch.int64, device=device)
    extra = {} if modules.rotary is None else {"position_embeddings": modules.rotary(states, where)}
    layer(states, attention_mask=None, position_ids=where, ragged=Ragged((cache,), (1,), (0,), index), **extra)
    if device != "cpu":
        torch.cuda.synchronize()

"""ExactShardEngine: a contiguous range of layers whose outputs have the same bits on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.base import EngineShape, RangeEngine, bad_input, engine_shape, packed_positions
from efedllm.engine.blocks import Block, token_blocks
from efedllm.engine.exact.arithmetic import canonical, constants, gelu_constants
from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.device import check_rounding
from efedllm.engine.exact.layer import ExactLayer
from efedllm.engine.exact.load import ExactFiles, ExactModules, load_exact
from efedllm.engine.exact.products import Kernel, fastest_kernel
from efedllm.engine.exact.rope import RopeTables, Rotation, make_tables
from efedllm.engine.exact.steps import Angles, steps_for
from efedllm.engine.memory.budgeted_layers import Room
from efedllm.engine.memory.layer_streaming import TierReport, check_device, open_tiers, slowdown
from efedllm.engine.memory.step_memory import Working, widest
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.engine.taps import TapCollector, Tapped
from efedllm.errors import ModelError
from efedllm.models.exact import check_supported
from efedllm.models.exact_config import GatedConfig, read_exact_config
from efedllm.models.source import open_published

BLOCK_TOKENS = 96
"""Tokens that a layer computes at once: what they need stays in the second-level cache (`efedllm bench memory` measures
it). No result depends on it."""


class ExactShardEngine(RangeEngine):
    """Executor (see `engine.protocol`) of the exact profile. Thread-confined: load and call it on one thread.

    Outputs depend on weights, tokens and positions only: not on threads, instruction set, batch, chunking or split.
    They are float32 without -0 and subnormal numbers, so their canonical F32 bytes are what the next engine reads;
    rounding them to bf16 on the wire would be another model. Inputs are brought to the same form.
    """

    def __init__(
        self,
        shape: EngineShape,
        modules: ExactModules,
        tables: RopeTables | None,
        kernel: Kernel,
        weights_root: bytes,
        *,
        room: Room[ExactLayer] | None = None,
        block: int = BLOCK_TOKENS,
        device: str = "cpu",
    ) -> None:
        super().__init__(shape)
        self._root = weights_root
        self._modules = modules
        self._tables = tables
        self._device = device
        self._rotation = None if tables is None else Rotation(tables, device)
        self._kernel = kernel
        self._steps = steps_for(kernel, shape.head_dim)
        self._room = room
        self._block = block
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
        kernel: Kernel | None = None,
        ram: int | None = None,
        device: str = "cpu",
        block: int = BLOCK_TOKENS,
    ) -> ExactShardEngine:
        """Load layers [lo, hi) of a model whose matrices are published as integers.

        As ShardEngine.load, and ModelError "unsupported-model" for what `models.exact.exact_obstacle` names. `kernel`
        is chosen by what this machine computes exactly when None. `ram`, `device` and `block`: see ShardEngine.load.
        ModelError "inexact-device" for a device whose arithmetic is not the profile's.
        """
        check_device(device)
        manifest = open_published(model_dir, verify_root, lo, hi)
        config = read_exact_config(model_dir)
        check_supported(manifest.tensors, config)
        torch.set_num_threads(threads)
        shape = engine_shape(model_dir, manifest, config, lo, hi)
        tables = None
        if isinstance(config, GatedConfig):
            tables = make_tables(shape.head_dim, shape.max_positions, config.rope_parameters)
        with torch.inference_mode():
            check_rounding(device)
            chosen = kernel or fastest_kernel(device)
            files = ExactFiles(model_dir, manifest, config, shape, chosen, device)
            if ram is None:
                return cls(shape, load_exact(files), tables, chosen, manifest.root, block=block, device=device)
            modules = files.modules(())
            working = Working(shape, widest(manifest, lo, hi), block, exact=True)
            working = replace(working, block=working.block_within(ram // 8))
            rotation = None if tables is None else Rotation(tables, device)
            tiers, seconds = open_tiers(
                range(lo, hi),
                files.path,
                files.layer,
                lambda layer: layer.held,
                partial(_decode_one, shape, rotation, device),
                total=ram,
                fixed=modules.nbytes + (0 if tables is None else tables.nbytes),
                working=working.step(1, 64) + ExactCache(hi - lo, shape.kv_heads, shape.head_dim).growth(1),
                # Packed matrices of one input are joined, and their integers unpacked in several steps.
                temporary=(24 if manifest.quant == "packed" else 2)
                * max(t.rows * t.cols for t in manifest.tensors_for(lo, hi)),
            )
            files.check_all_used()
        room = Room(tiers, working)
        engine = cls(shape, modules, tables, chosen, manifest.root, room=room, block=working.block, device=device)
        engine._report = TierReport(ram, hi - lo, *slowdown(engine, tiers, seconds))
        return engine

    @property
    def kernel(self) -> Kernel:
        return self._kernel

    @property
    def weight_bytes(self) -> int:
        return self._modules.nbytes if self._room is None else self._room.nbytes

    @property
    def tiers(self) -> TierReport | None:
        """How the layers lie in memory; None without a budget."""
        return self._report

    @property
    def constants_hash(self) -> bytes:
        """sha256 of the constants of the arithmetic, then the hash of this model's RoPE tables, or without them the
        constants of GELU."""
        own = gelu_constants() if self._tables is None else self._tables.sha256()
        return hashlib.sha256(constants() + own).digest()

    def new_sequence(self) -> ExactCache:
        cache = ExactCache(self.hi - self.lo, self._shape.kv_heads, self._shape.head_dim, self._device)
        if self._room is not None:
            self._room.track(cache)
        return cache

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        return self._step(batch, None)

    def step_with_taps(self, batch: SequenceOf[StepItem]) -> list[Tapped]:
        """As `step`, with the taps of the range's last layer."""
        if not batch:
            return []
        tap = TapCollector(self._root, self.hi - 1)
        states = self._step(batch, tap)
        ends = np.cumsum([len(part) for part in states])
        return [Tapped(part, rows) for part, rows in zip(states, np.split(tap.rows, ends[:-1]), strict=True)]

    def _step(self, batch: SequenceOf[StepItem], tap: TapCollector | None) -> list[Float32]:
        if not batch:
            return []
        caches = self._check(batch, ExactCache)
        counts = [len(item.inputs) for item in batch]
        if self._room is not None:
            self._room.for_step(caches, counts)
        packed = np.concatenate([item.inputs for item in batch])
        with torch.inference_mode():
            positions = torch.from_numpy(packed_positions(caches, counts)).to(self._device)
            angles = None if self._rotation is None else self._rotation.at(positions)
            states = self._embedded(packed, positions) if self.has_embedding else self._states(packed)
            for cache, count in zip(caches, counts, strict=True):
                cache.reserve(count)
            states = self._run(states, angles, token_blocks(caches, counts, self._block), tap)
            if not bool(torch.isfinite(states).all()):
                raise _overflow()
            for cache, count in zip(caches, counts, strict=True):
                cache.commit(count)
            return [part.numpy() for part in torch.split(states.cpu(), counts)]

    def _run(
        self, states: Tensor, angles: Angles | None, blocks: list[Block[ExactCache]], tap: TapCollector | None
    ) -> Tensor:
        """The layers, block by block within each, so that a layer's weights are fetched once for all tokens."""
        last = self.hi - self.lo - 1

        def through(slot: int, layer: ExactLayer) -> None:
            nonlocal states
            outputs = []
            for block in blocks:
                rows = block.rows
                turned = None if angles is None else (angles[0][rows], angles[1][rows])
                members = list(zip(block.caches, block.counts, block.offsets, strict=True))
                outputs.append(layer(states[rows], turned, slot, members, tap if slot == last else None))
            states = outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        if self._room is not None:
            self._room.each_layer(through)
        else:
            for slot, layer in enumerate(self._modules.layers):
                through(slot, layer)
        return states

    def logits(self, hidden: Float32) -> Float32:
        norm, head = self._modules.norm, self._modules.head
        if norm is None or head is None:
            raise self._no_head()
        self._check_states(hidden)
        if self._room is not None:
            self._room.for_logits(len(hidden))
        with torch.inference_mode():
            out, finite = self._steps.canonical(head(self._steps.norm(norm, self._states(hidden))))
            if not finite:
                raise _overflow()
            return out.cpu().numpy()

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        where = self._check_embed(ids, positions)
        with torch.inference_mode():
            return self._embedded(ids, torch.from_numpy(where).to(self._device)).cpu().numpy()

    def _embedded(self, ids: npt.NDArray[np.generic], positions: Tensor) -> Tensor:
        table, learned = self._modules.embed, self._modules.positions
        assert table is not None
        rows = table(torch.from_numpy(ids.astype(np.int64)).to(self._device))
        return canonical(rows if learned is None else rows.add_(learned(positions)))

    def _states(self, states: npt.NDArray[np.generic]) -> Tensor:
        """Raises ModelError "bad-input" for NaN and infinity, whose conversion to integers differs between machines."""
        if not np.isfinite(states).all():
            raise bad_input("the states hold NaN or infinity")
        return canonical(torch.from_numpy(np.array(states, dtype=np.float32)).to(self._device))


def _overflow() -> ModelError:
    return ModelError(
        "overflow", "The model's numbers left the range of float32.", "The weights or the inputs are not sound."
    )


def _decode_one(shape: EngineShape, rotation: Rotation | None, device: str, index: int, layer: ExactLayer) -> None:
    """One token at position 0 through one layer."""
    del index
    cache = ExactCache(1, shape.kv_heads, shape.head_dim, device)
    cache.reserve(1)
    angles = None if rotation is None else rotation.at(torch.zeros(1, dtype=torch.int64, device=device))
    out: Tensor = layer(torch.linspace(-1, 1, shape.hidden, device=device).view(1, -1), angles, 0, [(cache, 1, 0)])
    # Waits for a GPU, so that the time taken can be measured.
    out.cpu()

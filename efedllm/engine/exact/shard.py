"""ExactShardEngine: a contiguous range of layers whose outputs have the same bits on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.base import EngineShape, RangeEngine, bad_input, engine_shape, packed_positions
from efedllm.engine.exact.arithmetic import canonical, constants, gelu_constants
from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.load import ExactModules, load_exact
from efedllm.engine.exact.products import Kernel, fastest_kernel
from efedllm.engine.exact.rope import RopeTables, Rotation, make_tables
from efedllm.engine.exact.tap import Tap
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.engine.taps import Tapped
from efedllm.errors import ModelError
from efedllm.models.exact import check_supported
from efedllm.models.families import build_skeleton, read_config
from efedllm.models.source import open_published


class ExactShardEngine(RangeEngine):
    """Executor (see `engine.protocol`) of the exact profile. Thread-confined: load and call it on one thread.

    Outputs depend on weights, tokens and positions only: not on threads, instruction set, batch, chunking or split.
    They are float32 without -0 and subnormal numbers, so their canonical F32 bytes are what the next engine reads;
    rounding them to bf16 on the wire would be another model. Inputs are brought to the same form.
    """

    def __init__(
        self, shape: EngineShape, modules: ExactModules, tables: RopeTables | None, kernel: Kernel, weights_root: bytes
    ) -> None:
        super().__init__(shape)
        self._root = weights_root
        self._modules = modules
        self._tables = tables
        self._rotation = None if tables is None else Rotation(tables)
        self._kernel = kernel

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
    ) -> ExactShardEngine:
        """Load layers [lo, hi) of a model whose matrices are published as integers.

        As ShardEngine.load, and ModelError "unsupported-model" for what `models.exact.exact_obstacle` names. `kernel`
        is chosen by what this machine computes exactly when None.
        """
        manifest = open_published(model_dir, verify_root, lo, hi)
        config = read_config(model_dir)
        check_supported(manifest.tensors, config)
        torch.set_num_threads(threads)
        skeleton = build_skeleton(config, "eager")
        shape = engine_shape(model_dir, manifest, skeleton, lo, hi)
        tables = None
        if skeleton.family.rotary is not None:
            tables = make_tables(shape.head_dim, shape.max_positions, config.rope_parameters)
        with torch.inference_mode():
            chosen = kernel or fastest_kernel()
            modules = load_exact(model_dir, manifest, skeleton, shape, chosen)
            return cls(shape, modules, tables, chosen, manifest.root)

    @property
    def kernel(self) -> Kernel:
        return self._kernel

    @property
    def weight_bytes(self) -> int:
        return self._modules.nbytes

    @property
    def constants_hash(self) -> bytes:
        """sha256 of the constants of the arithmetic, then the hash of this model's RoPE tables, or without them the
        constants of GELU."""
        own = gelu_constants() if self._tables is None else self._tables.sha256()
        return hashlib.sha256(constants() + own).digest()

    def new_sequence(self) -> ExactCache:
        return ExactCache(self.hi - self.lo, self._shape.kv_heads, self._shape.head_dim)

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        return self._step(batch, None)

    def step_with_taps(self, batch: SequenceOf[StepItem]) -> list[Tapped]:
        """As `step`, with the taps of the range's last layer."""
        if not batch:
            return []
        tap = Tap(self._root, self.hi - 1)
        states = self._step(batch, tap)
        ends = np.cumsum([len(part) for part in states])
        return [Tapped(part, rows) for part, rows in zip(states, np.split(tap.rows, ends[:-1]), strict=True)]

    def _step(self, batch: SequenceOf[StepItem], tap: Tap | None) -> list[Float32]:
        if not batch:
            return []
        caches = self._check(batch, ExactCache)
        counts = [len(item.inputs) for item in batch]
        packed = np.concatenate([item.inputs for item in batch])
        with torch.inference_mode():
            positions = torch.from_numpy(packed_positions(caches, counts))
            angles = None if self._rotation is None else self._rotation.at(positions)
            states = self._embedded(packed, positions) if self.has_embedding else _states(packed)
            for cache, count in zip(caches, counts, strict=True):
                cache.reserve(count)
            members = list(zip(caches, counts, strict=True))
            last = len(self._modules.layers) - 1
            for slot, layer in enumerate(self._modules.layers):
                states = layer(states, angles, slot, members, tap if slot == last else None)
            _check_finite(states)
            for cache, count in members:
                cache.commit(count)
            return [part.numpy() for part in torch.split(states, counts)]

    def logits(self, hidden: Float32) -> Float32:
        norm, head = self._modules.norm, self._modules.head
        if norm is None or head is None:
            raise self._no_head()
        self._check_states(hidden)
        with torch.inference_mode():
            out = canonical(head(norm(_states(hidden).double())))
            _check_finite(out)
            return out.numpy()

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        where = self._check_embed(ids, positions)
        with torch.inference_mode():
            return self._embedded(ids, torch.from_numpy(where)).numpy()

    def _embedded(self, ids: npt.NDArray[np.generic], positions: Tensor) -> Tensor:
        table, learned = self._modules.embed, self._modules.positions
        assert table is not None
        rows = table.rows(torch.from_numpy(ids.astype(np.int64)))
        return canonical(rows if learned is None else rows.add_(learned.rows(positions)))


def _states(states: npt.NDArray[np.generic]) -> Tensor:
    """Raises ModelError "bad-input" for NaN and infinity, whose conversion to integers differs between machines."""
    if not np.isfinite(states).all():
        raise bad_input("the states hold NaN or infinity")
    return canonical(torch.from_numpy(np.array(states, dtype=np.float32)))


def _check_finite(states: Tensor) -> None:
    if not torch.isfinite(states).all():
        raise ModelError(
            "overflow", "The model's numbers left the range of float32.", "The weights or the inputs are not sound."
        )

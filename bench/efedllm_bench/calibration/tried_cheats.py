"""The cheats that a calibration tries on a float model: of `efedllm_bench.attacks`, those that change least.

A cheat is tried over every range of layers in one prefill of every text. What needs decoding (rows kept from another
position or job), another prompt or other tokens deviates by as much as the update itself, and tells no limit anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.engine.cache import KVCache
from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.protocol import Executor, Sequence
from efedllm.engine.select import load_executor
from efedllm.models.families import read_config
from efedllm.models.manifest import ENCODERS, Manifest
from efedllm.models.tensorfile import TensorFile
from efedllm_bench.cheats import weights as wt
from efedllm_bench.cheats.catalog import Arm, Shop, attack

Rows = npt.NDArray[np.float32]

_ROUNDED = 1e-6  # of the norm of a matrix: float32 rounding of its values, as products of an integer and a scale


@dataclass(frozen=True)
class Cheat:
    """One cheat: an edit of every matrix, or a strategy of `efedllm_bench.attacks` by its `arm`.

    `counts`: whether it can be the weakest attack of a tolerance. It does when it saves its node work or memory or puts
    another model in place. Noise that does neither can be made as small as one likes, below any limit: what it comes to
    is reported only. `layers`: that a range must have for it; `causal`: not for encoders.
    """

    name: str
    edit: wt.Edit | None = None
    arm: Arm | None = None
    counts: bool = True
    layers: int = 1
    causal: bool = False


def cheats(manifest: Manifest) -> tuple[Cheat, ...]:
    """What is tried on a model."""
    one = one_matrix(manifest)
    every = (
        Cheat("fp16 weights", wt.precision("fp16")),
        Cheat("bf16 weights", wt.precision("bf16")),
        Cheat("int8 weights", wt.precision("int8")),
        Cheat("weights off by 1e-2", wt.noise(1e-2)),
        Cheat("weights off by 1e-3", wt.noise(1e-3)),
        Cheat("weights off by 1e-4", wt.noise(1e-4), counts=False),
        Cheat("rank 98 %", wt.rank(0.98)),
        Cheat("rank 90 %", wt.rank(0.90)),
        Cheat(f"rank-1 update of 1e-3 of {one}", wt.lora(one)),
        Cheat("bf16 compute", arm=attack("bf16_compute").arm),
        Cheat("one layer left out", arm=attack("skip_layer").arm, layers=2),
        Cheat("keys and values in fp8", arm=attack("kv_fp8").arm, causal=True),
        Cheat("output off by 1e-4", arm=attack("out_noise_1e-4").arm, counts=False),
    )
    return tuple(cheat for cheat in every if not (cheat.causal and manifest.model_type in ENCODERS))


def one_matrix(manifest: Manifest) -> str:
    """What the names of one matrix of every layer end with: "mlp.up_proj.weight"."""
    layer = min(t.layer for t in manifest.tensors)
    names = sorted(t.name for t in manifest.tensors if t.layer == layer and t.cols > 1)
    return names[-1].split(f".{layer}.", 1)[1]


class CalibrationShop(Shop):
    """A Shop for float models of every family, encoders too; what it falsifies lies in one folder, see `clear`."""

    def load(self, lo: int, hi: int, directory: Path | None = None) -> Executor:
        return load_executor(directory or self.published, lo, hi)

    def falsified(self, name: str, edit: wt.Edit, executor: Executor) -> Executor:
        self.clear()
        out = wt.falsify(self.published, self._folder / name, edit, executor.lo, executor.hi)
        return load_executor(out, executor.lo, executor.hi)

    def cache(self, executor: Executor, kinds: tuple[type[KVCache], type[ExactCache]]) -> Callable[[], Sequence]:
        config: Any = read_config(self.published)
        heads = int(config.num_attention_heads)
        kept = int(getattr(config, "num_key_value_heads", None) or heads)
        dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return lambda: kinds[0](executor.hi - executor.lo, kept, dim)

    def clear(self) -> None:
        """Free the disk: a falsified range takes as much as the range in float32."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return self.work / "falsified"


def armed(cheat: Cheat, shop: CalibrationShop, engine: Executor) -> Executor | None:
    """What a node that cheats so runs in place of `engine`; None where that is what is published."""
    if engine.hi - engine.lo < cheat.layers:
        return None
    if cheat.edit is not None:
        if not changes(shop.published, cheat.edit, engine.lo, engine.hi):
            return None
        return shop.falsified(cheat.name, cheat.edit, engine)
    assert cheat.arm is not None
    return cheat.arm(shop, engine)


def changes(directory: Path, edit: wt.Edit, lo: int, hi: int) -> bool:
    """Whether an edit makes other weights at all: bf16 makes none where the published ones are bf16, and int8 none, but
    for float32 rounding, where they are int8."""
    return any(not _same(before, edit(before)) for before in _matrices(directory, lo, hi))


def _matrices(directory: Path, lo: int, hi: int) -> Iterator[wt.Matrix]:
    for tensor in Manifest.load(directory).tensors:
        if lo <= tensor.layer < hi and tensor.cols > 1:
            with TensorFile(directory / tensor.file) as file:
                yield wt.read_matrix(file, tensor)


def _same(before: wt.Matrix, after: wt.Matrix) -> bool:
    pairs = ((before.weight, after.weight), (before.u, after.u), (before.v, after.v))
    return all(a is None or (b is not None and _equal(a, b)) for a, b in pairs)


def _equal(a: Rows, b: Rows) -> bool:
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= _ROUNDED * np.linalg.norm(a))

"""Layers of the exact profile from published safetensors files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from efedllm.engine.base import EngineShape
from efedllm.engine.exact.layer import Attention, ExactLayer, Mlp
from efedllm.engine.exact.linear import Linears
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.steps import Heads, Norm, steps_for
from efedllm.engine.linear import Table
from efedllm.engine.tiled import scales_of, values_of
from efedllm.kernels.matrix import Scratch
from efedllm.models.architecture import LinearShape, has_head_norms, layer_linears, sliding_window
from efedllm.models.exact_config import ExactConfig, GatedConfig, Gpt2Config
from efedllm.models.families import FAMILIES, is_tied
from efedllm.models.linear import PublishedLinear, PublishedMatrix, PublishedTensors
from efedllm.models.manifest import EMBED_FILE, HEAD_FILE, Manifest, layer_file
from efedllm.models.tensorfile import TensorFile


@dataclass(frozen=True, eq=False)
class ExactModules:
    """What one engine runs; absent parts are None."""

    layers: tuple[ExactLayer, ...]
    embed: Table | None
    positions: Table | None
    norm: Norm | None
    head: Linears | None

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory; a tied embedding and head count once."""
        parts = [*self.layers, self.norm, self.head]
        held = [t for part in parts if part is not None for t in part.held]
        held += [t for table in (self.embed, self.positions) if table is not None for t in table.buffers()]
        return sum({t.data_ptr(): t.nbytes for t in held}.values())


def load_exact(files: ExactFiles) -> ExactModules:
    """Everything of a range, in memory. Raises ModelError "corrupt-weights" when files and architecture do not fit."""
    layers: list[ExactLayer] = []
    for index in range(files.shape.lo, files.shape.hi):
        with TensorFile(files.path(index)) as file:
            layers.append(files.layer(file, index))
    modules = files.modules(tuple(layers))
    files.check_all_used()
    return modules


class ExactFiles:
    """The published files of the layers of `shape`; `models.exact.check_supported` must have passed.

    Every method raises ModelError "corrupt-weights" when the files and the architecture do not fit together.
    """

    def __init__(
        self,
        model_dir: Path,
        manifest: Manifest,
        config: ExactConfig,
        shape: EngineShape,
        kernel: Kernel,
        device: str = "cpu",
    ) -> None:
        """`device`: where everything read is put, the CPU for the native kernel."""
        self._dir = model_dir
        self._config = config
        tensors = PublishedTensors(manifest.tensors_for(shape.lo, shape.hi))
        self._loader = _Loader(tensors, config, shape, kernel, device)
        self.shape = shape

    def path(self, index: int) -> Path:
        """The file of one layer."""
        return self._dir / layer_file(index)

    def layer(self, file: TensorFile, index: int) -> ExactLayer:
        """Layer `index` from its file."""
        return self._loader.layer(file, index)

    def check_all_used(self) -> None:
        """To be called when every layer was read at least once, and `modules`."""
        self._loader.reader.check_all_used()

    def modules(self, layers: tuple[ExactLayer, ...]) -> ExactModules:
        """What an engine runs beside `layers`, embeddings at the start and norm and head at the end of the model, and
        those."""
        shape, loader, tied = self.shape, self._loader, is_tied(self._config)
        table: PublishedMatrix | None = None
        embed: Table | None = None
        positions: Table | None = None
        norm: Norm | None = None
        head: Linears | None = None
        family = FAMILIES[self._config.model_type]
        last = shape.hi == shape.layers
        starts = shape.lo == 0
        if starts or (last and tied):
            with TensorFile(self._dir / EMBED_FILE) as file:
                table = loader.table(file, family.embed, shape.vocab)
                embed = loader.embedding(table)
                if family.positions is not None:
                    positions = loader.embedding(loader.table(file, family.positions, shape.max_positions))
        if last:
            with TensorFile(self._dir / HEAD_FILE) as file:
                norm = loader.norm(file, family.norm, shape.hidden)
                if tied:
                    head = loader.linears([PublishedLinear(table)])
                else:
                    linear = LinearShape(shape.vocab, shape.hidden, False)
                    head = loader.linears([loader.reader.linear(file, family.head, linear)])
        return ExactModules(layers, embed if starts else None, positions if starts else None, norm, head)


@dataclass(frozen=True)
class _Loader:
    reader: PublishedTensors
    config: ExactConfig
    shape: EngineShape
    kernel: Kernel
    device: str
    scratch: Scratch = field(default_factory=Scratch)
    """Shared by all maps of the engine."""

    def layer(self, file: TensorFile, index: int) -> ExactLayer:
        config = self.config
        return self._gpt2(file, index, config) if isinstance(config, Gpt2Config) else self._llama(file, index)

    def _llama(self, file: TensorFile, index: int) -> ExactLayer:
        prefix, shape = self._prefix(index), self.shape
        query_norm = key_norm = None
        if has_head_norms(self.config):
            query_norm, key_norm = (
                self.norm(file, f"{prefix}self_attn.{name}", shape.head_dim) for name in ("q_norm", "k_norm")
            )
        return ExactLayer(
            self.norm(file, f"{prefix}input_layernorm", shape.hidden),
            Attention(
                Heads(
                    heads=shape.heads,
                    kv_heads=shape.kv_heads,
                    dim=shape.head_dim,
                    # IEEE square root and division; a power would be libm's.
                    scaling=1.0 / math.sqrt(shape.head_dim),
                    window=sliding_window(self.config, index),
                    query_norm=query_norm,
                    key_norm=key_norm,
                ),
                qkv=self._linears(file, index, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                out=self._linears(file, index, "self_attn.o_proj"),
            ),
            self.norm(file, f"{prefix}post_attention_layernorm", shape.hidden),
            Mlp(
                gated=True,
                up=self._linears(file, index, "mlp.gate_proj", "mlp.up_proj"),
                down=self._linears(file, index, "mlp.down_proj"),
            ),
            steps_for(self.kernel, shape.head_dim),
        )

    def _gpt2(self, file: TensorFile, index: int, config: Gpt2Config) -> ExactLayer:
        prefix, shape = self._prefix(index), self.shape
        scaling = 1.0 / math.sqrt(shape.head_dim) if config.scale_attn_weights else 1.0
        return ExactLayer(
            self.norm(file, f"{prefix}ln_1", shape.hidden),
            Attention(
                Heads(
                    heads=shape.heads,
                    kv_heads=shape.heads,
                    dim=shape.head_dim,
                    scaling=scaling / (index + 1) if config.scale_attn_by_inverse_layer_idx else scaling,
                    window=None,
                    query_norm=None,
                    key_norm=None,
                ),
                qkv=self._linears(file, index, "attn.c_attn"),
                out=self._linears(file, index, "attn.c_proj"),
            ),
            self.norm(file, f"{prefix}ln_2", shape.hidden),
            Mlp(
                gated=False,
                up=self._linears(file, index, "mlp.c_fc"),
                down=self._linears(file, index, "mlp.c_proj"),
            ),
            steps_for(self.kernel, shape.head_dim),
        )

    def _linears(self, file: TensorFile, index: int, *paths: str) -> Linears:
        shapes, prefix = layer_linears(self.config), self._prefix(index)
        return self.linears([self.reader.linear(file, prefix + path, shapes[path]) for path in paths])

    def _prefix(self, index: int) -> str:
        return FAMILIES[self.config.model_type].layer_prefix(index)

    def linears(self, published: list[PublishedLinear]) -> Linears:
        return Linears(published, self.kernel, self.scratch, self.device)

    def norm(self, file: TensorFile, path: str, size: int) -> Norm:
        weight = self._vector(file, f"{path}.weight", size)
        if isinstance(self.config, GatedConfig):
            return Norm(weight, float(self.config.rms_norm_eps))
        bias = self._vector(file, f"{path}.bias", size)
        return Norm(weight, float(self.config.layer_norm_epsilon), bias)

    def _vector(self, file: TensorFile, name: str, size: int) -> Tensor:
        return torch.from_numpy(self.reader.vector(file, name, size)).to(self.device).double()

    def table(self, file: TensorFile, path: str, rows: int) -> PublishedMatrix:
        return self.reader.matrix(file, f"{path}.weight", (rows, self.shape.hidden))

    def embedding(self, table: PublishedMatrix) -> Table:
        return Table(values_of(table), scales_of(table)).to(self.device)

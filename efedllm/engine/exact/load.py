"""Layers of the exact profile from published safetensors files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from efedllm.engine.base import EngineShape
from efedllm.engine.exact.layer import Attention, ExactLayer, Mlp
from efedllm.engine.exact.linear import Factors, Int8Rows, Linears, Published
from efedllm.engine.exact.packed import PackedRows
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.steps import Heads, Norm, steps_for
from efedllm.engine.tensors import TensorReader
from efedllm.kernels.matrix import Scratch
from efedllm.models.architecture import LinearShape, has_head_norms, layer_linears, sliding_window
from efedllm.models.exact_config import ExactConfig, GatedConfig, Gpt2Config
from efedllm.models.families import FAMILIES, is_tied
from efedllm.models.manifest import EMBED_FILE, HEAD_FILE, Manifest, TensorInfo, layer_file
from efedllm.models.packing import PACKED_BITS
from efedllm.models.tensorfile import TensorFile, check_layout


@dataclass(frozen=True, eq=False)
class Table:
    """Embeddings by id or position: `values` of any dtype [rows, hidden], `scales` float32 [rows] when they are
    int8."""

    values: Tensor
    scales: Tensor | None

    def rows(self, where: Tensor) -> Tensor:
        """float32 [n, hidden] of int64 [n]; a new tensor."""
        picked = self.values[where].to(torch.float32, copy=True)
        return picked if self.scales is None else picked.mul_(self.scales[where].unsqueeze(1))

    @property
    def held(self) -> list[Tensor]:
        return [self.values] if self.scales is None else [self.values, self.scales]

    def to(self, device: str) -> Table:
        return Table(self.values.to(device), None if self.scales is None else self.scales.to(device))


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
        parts = [*self.layers, self.embed, self.positions, self.norm, self.head]
        held = [t for part in parts if part is not None for t in part.held]
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
        self._loader = _Loader(TensorReader(manifest.tensors_for(shape.lo, shape.hi)), config, shape, kernel, device)
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
        embed: Table | None = None
        positions: Table | None = None
        norm: Norm | None = None
        head: Linears | None = None
        family = FAMILIES[self._config.model_type]
        last = shape.hi == shape.layers
        starts = shape.lo == 0
        if starts or (last and tied):
            with TensorFile(self._dir / EMBED_FILE) as file:
                embed = loader.table(file, family.embed, shape.vocab)
                if family.positions is not None:
                    positions = loader.table(file, family.positions, shape.max_positions)
        if last:
            with TensorFile(self._dir / HEAD_FILE) as file:
                norm = loader.norm(file, family.norm, shape.hidden)
                if tied:
                    assert embed is not None
                    assert embed.scales is not None
                    head = loader.linears([Published(Int8Rows(embed.values, embed.scales), None, None)])
                else:
                    linear = LinearShape(shape.vocab, shape.hidden, False)
                    head = loader.linears([loader.published(file, family.head, linear)])
        return ExactModules(layers, embed if starts else None, positions if starts else None, norm, head)


@dataclass(frozen=True)
class _Loader:
    reader: TensorReader
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
        return self.linears([self.published(file, prefix + path, shapes[path]) for path in paths])

    def _prefix(self, index: int) -> str:
        return FAMILIES[self.config.model_type].layer_prefix(index)

    def linears(self, published: list[Published]) -> Linears:
        return Linears(published, self.kernel, self.scratch, self.device)

    def norm(self, file: TensorFile, path: str, size: int) -> Norm:
        weight = self.reader.vector(file, f"{path}.weight", size).to(self.device).double()
        if isinstance(self.config, GatedConfig):
            return Norm(weight, float(self.config.rms_norm_eps))
        bias = self.reader.vector(file, f"{path}.bias", size).to(self.device).double()
        return Norm(weight, float(self.config.layer_norm_epsilon), bias)

    def table(self, file: TensorFile, path: str, rows: int) -> Table:
        tensor = self.reader.entry(f"{path}.weight", (rows, self.shape.hidden))
        check_layout(file, tensor)
        parts = self.reader.parts(file, tensor)
        return Table(parts[0], parts[1] if tensor.dtype == "int8" else None).to(self.device)

    def published(self, file: TensorFile, path: str, shape: LinearShape) -> Published:
        """The published form of the linear module named `path`."""
        tensor = self.reader.entry(f"{path}.weight", (shape.rows, shape.columns))
        check_layout(file, tensor)
        bias = self.reader.vector(file, f"{path}.bias", shape.rows) if shape.bias else None
        return _published(tensor, self.reader.parts(file, tensor), bias)


def _published(tensor: TensorInfo, parts: list[Tensor], bias: Tensor | None) -> Published:
    """`parts` in hashing order, see TensorInfo."""
    if tensor.form == "dense":
        values, scales = parts
        return Published(Int8Rows(values, scales), None, bias)
    if tensor.form == "lowrank":
        u, v, u_scales, v_scales = parts
        return Published(None, Factors(Int8Rows(u, u_scales), Int8Rows(v, v_scales)), bias)
    data, multipliers, scales, *factors = parts
    bits = PACKED_BITS[tensor.dtype]
    base = PackedRows(data, multipliers, scales, tensor.cols, bits, tensor.group)
    if not factors:
        return Published(base, None, bias)
    u, v, v_scales = factors
    # Its scale is in v's.
    return Published(base, Factors(Int8Rows(u, torch.ones(len(u))), Int8Rows(v, v_scales)), bias)

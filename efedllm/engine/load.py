"""Filling the modules of a layer range from published safetensors files."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from efedllm.engine.linear import DenseLinear, LowRankLinear, NativeLinear, NativeTable, PackedLinear, Table
from efedllm.engine.norm import RmsNorm
from efedllm.engine.tiled import scales_of, tiled_linear, values_of
from efedllm.kernels.matrix import Scratch, TiledLinear, TiledMatrix
from efedllm.kernels.native import library
from efedllm.models.architecture import LinearShape
from efedllm.models.linear import PublishedMatrix, PublishedTensors, misfit
from efedllm.models.manifest import EMBED_FILE, HEAD_FILE, Manifest, TensorInfo, layer_file
from efedllm.models.skeleton import Skeleton, is_matrix, linear_shape
from efedllm.models.tensorfile import TensorFile


@dataclass(frozen=True)
class ShardModules:
    """What one engine runs. `segment` is a row [hidden]; absent parts are None."""

    layers: tuple[nn.Module, ...]
    rotary: nn.Module | None
    embed: nn.Module | None
    positions: nn.Module | None
    norm: nn.Module | None
    head: nn.Module | None
    segment: Tensor | None = None
    embed_norm: nn.Module | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory; a tied embedding and head count once."""
        held = [] if self.segment is None else [self.segment]
        for module in (*self.layers, self.embed, self.positions, self.norm, self.head, self.embed_norm):
            if module is not None:
                held += held_by(module)
        return sum({t.data_ptr(): t.nbytes for t in held}.values())

    def to(self, device: str) -> ShardModules:
        """The same on `device`; a tied embedding and head stay one. Not for modules loaded with `native`."""
        if device == "cpu":
            return self
        embed, head = self.embed, self.head
        tied = isinstance(embed, Table) and isinstance(head, DenseLinear) and head.weight is embed.values
        parts = (self.rotary, self.embed, self.positions, self.norm, self.head, self.embed_norm)
        for module in (*self.layers, *parts):
            if module is not None:
                module.to(device)
        if tied and isinstance(embed, Table) and isinstance(head, DenseLinear):
            embed.values = head.weight
        return replace(self, segment=None if self.segment is None else self.segment.to(device))


_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
"""Names of the linear modules of a block that read the same input."""


def held_by(module: nn.Module) -> list[Tensor]:
    """Every tensor that `module` keeps in memory."""
    return [*module.parameters(), *module.buffers()]


def load_modules(
    model_dir: Path, manifest: Manifest, skeleton: Skeleton, lo: int, hi: int, *, native: bool = True
) -> ShardModules:
    """Load layers [lo, hi), with embeddings at the start and norm and head at the end of the model.

    With `native`, integer matrices stay as published and run on the native kernels where there are any; without, all is
    expanded to float32. Raises ModelError "corrupt-weights" when the files and the architecture do not fit together.
    """
    files = ShardFiles(model_dir, manifest, skeleton, lo, hi, native=native)
    layers: list[nn.Module] = []
    for index in range(lo, hi):
        with TensorFile(files.path(index)) as file:
            layers.append(files.layer(file, index))
    modules = files.modules(tuple(layers))
    files.check_all_used()
    return modules


class ShardFiles:
    """The published files of layers [lo, hi). Every method raises ModelError "corrupt-weights" when files and
    architecture do not fit together. `native` as in `load_modules`.
    """

    def __init__(
        self, model_dir: Path, manifest: Manifest, skeleton: Skeleton, lo: int, hi: int, *, native: bool = True
    ) -> None:
        self._dir = model_dir
        self._reader = _FloatReader(manifest.tensors_for(lo, hi), native=native)
        self._skeleton = skeleton
        self._lo, self._hi = lo, hi

    def path(self, index: int) -> Path:
        """The file of one layer."""
        return self._dir / layer_file(index)

    def layer(self, file: TensorFile, index: int) -> nn.Module:
        """Layer `index` from its file: a new module every time."""
        config = self._skeleton.config
        layer = copy.deepcopy(self._skeleton.layer(index), {id(config): config})
        _fill(layer, self._skeleton.layer_prefix(index), self._reader, file)
        return layer

    def check_all_used(self) -> None:
        """To be called when every layer was read at least once, and `modules`."""
        self._reader.check_all_used()

    def modules(self, layers: tuple[nn.Module, ...]) -> ShardModules:
        """What an engine runs beside `layers`, and those."""
        skeleton, reader = self._skeleton, self._reader
        family = skeleton.family
        embed: nn.Module | None = None
        positions: nn.Module | None = None
        segment: Tensor | None = None
        norm: nn.Module | None = None
        head: nn.Module | None = None
        embed_norm: nn.Module | None = None
        last = self._hi == skeleton.layers
        starts = self._lo == 0
        if starts or (last and skeleton.tied):
            with TensorFile(self._dir / EMBED_FILE) as file:
                table = reader.table(file, f"{family.embed}.weight")
                embed = table
                if family.positions is not None:
                    positions = reader.table(file, f"{family.positions}.weight")
                if family.types is not None:
                    segment = _floats(reader.matrix(file, f"{family.types}.weight"))[0]
                if family.embed_norm is not None:
                    embed_norm = skeleton.model.get_submodule(family.embed_norm)
                    _fill(embed_norm, f"{family.embed_norm}.", reader, file)
        if last and not family.is_encoder:
            with TensorFile(self._dir / HEAD_FILE) as file:
                norm = skeleton.model.get_submodule(family.norm)
                _fill(norm, f"{family.norm}.", reader, file)
                if skeleton.tied:
                    embed, head = reader.tied(table)
                else:
                    head = reader.module(file, family.head, skeleton.model.get_submodule(family.head), _Shared())
        return ShardModules(
            layers,
            skeleton.rotary(),
            embed if starts else None,
            positions if starts else None,
            norm,
            head,
            segment,
            embed_norm,
        )


@dataclass(frozen=True, eq=False)
class _Shared:
    """Factors that several maps of one layer use, by the address of what is published."""

    tiled: dict[int, TiledMatrix] = field(default_factory=dict)
    floats: dict[int, Tensor] = field(default_factory=dict)


class _FloatReader(PublishedTensors):
    def __init__(self, tensors: Iterable[TensorInfo], *, native: bool) -> None:
        super().__init__(tensors)
        self._library = library() if native else None
        self._scratch = Scratch()

    def table(self, file: TensorFile, name: str) -> Table:
        published = self.matrix(file, name)
        if published.dtype == "int8" and self._library is not None:
            return Table(values_of(published), scales_of(published))
        return Table(_floats(published))

    def tied(self, table: Table) -> tuple[nn.Module, nn.Module]:
        """Embedding and head that share one matrix."""
        if table.scales is None or self._library is None:
            return table, DenseLinear(table.values, None)
        matrix = TiledMatrix(self._library, table.values, table.values.shape[1], scale=table.scales)
        return NativeTable(matrix), NativeLinear(self._library, TiledLinear(matrix, None, None), self._scratch)

    def module(self, file: TensorFile, path: str, module: nn.Module, shared: _Shared) -> nn.Module:
        """The published form of linear module `module`, whose dotted name is `path`."""
        shape = LinearShape(*linear_shape(module), getattr(module, "bias", None) is not None)
        published = self.linear(file, path, shape)
        if self._library is not None and all(matrix.is_integer for matrix in published.matrices):
            tiled = tiled_linear(self._library, published, shared.tiled)
            return NativeLinear(self._library, tiled, self._scratch)
        base, u, v = published.base, published.u, published.v
        bias = None if published.bias is None else torch.from_numpy(published.bias)
        if u is None or v is None:
            assert base is not None
            return DenseLinear(_floats(base), bias)
        if v.address not in shared.floats:
            shared.floats[v.address] = _floats(v)
        factors = _floats(u), shared.floats[v.address]
        return LowRankLinear(*factors, bias) if base is None else PackedLinear(_floats(base), *factors, bias)


def _floats(matrix: PublishedMatrix) -> Tensor:
    return torch.from_numpy(matrix.floats())


def _join(block: nn.Module) -> None:
    """Let modules of one input below `block` compute what they share once."""
    for names in _SAME_INPUT:
        found = [module for name in names if (module := getattr(block, name, None)) is not None]
        native = [module for module in found if isinstance(module, NativeLinear)]
        if len(native) > 1:
            NativeLinear.join(native)
        same: dict[int, list[LowRankLinear]] = {}
        for module in found:
            if isinstance(module, LowRankLinear):
                same.setdefault(module.v.data_ptr(), []).append(module)
        for modules in same.values():
            if len(modules) > 1:
                LowRankLinear.share(modules)


def _fill(root: nn.Module, prefix: str, reader: _FloatReader, file: TensorFile) -> None:
    """Give every parameter below `root` its published value, replacing linear modules by their published form."""
    shared = _Shared()
    for path, module in list(root.named_modules()):
        if is_matrix(module):
            parent, _, leaf = path.rpartition(".")
            setattr(root.get_submodule(parent), leaf, reader.module(file, prefix + path, module, shared))
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            dotted = f"{path}.{name}" if path else name
            value = torch.from_numpy(reader.vector(file, prefix + dotted, parameter.numel()))
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    for block in list(root.modules()):
        _join(block)
        for name, child in list(block.named_children()):
            fused = RmsNorm.of(child)
            if fused is not None:
                setattr(block, name, fused)
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if tensor.is_meta:
            raise misfit(f"{prefix}{name} is not published")

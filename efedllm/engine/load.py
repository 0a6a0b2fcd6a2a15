"""Filling the modules of a layer range from published safetensors files."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from efedllm.engine.linear import DenseLinear, LowRankLinear, NativeLinear, NativeTable, PackedLinear, Table
from efedllm.engine.norm import RmsNorm
from efedllm.engine.tensors import TensorReader, misfit, part
from efedllm.kernels.matrix import Scratch, TiledLinear, TiledMatrix
from efedllm.kernels.native import Library, library
from efedllm.models.manifest import EMBED_FILE, HEAD_FILE, Manifest, TensorInfo, layer_file
from efedllm.models.packing import PACKED_BITS, unpack
from efedllm.models.skeleton import Skeleton, is_matrix
from efedllm.models.tensorfile import TensorFile, check_layout


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
                    segment = reader.matrix(file, f"{family.types}.weight")[0]
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
                    head = reader.linear(file, family.head, skeleton.model.get_submodule(family.head))
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


class _FloatReader(TensorReader):
    def __init__(self, tensors: Iterable[TensorInfo], *, native: bool) -> None:
        super().__init__(tensors)
        self._library = library() if native else None
        self._scratch = Scratch()
        # The v parts of the layer being read: followers of a stack take that of its first.
        self._shared: dict[str, Tensor | TiledMatrix] = {}

    def matrix(self, file: TensorFile, name: str) -> Tensor:
        """A dense matrix, float32."""
        return _expanded(file, self._dense(name))[0]

    def table(self, file: TensorFile, name: str) -> Table:
        tensor = self._dense(name)
        if tensor.dtype == "int8" and self._library is not None:
            return Table(*self.parts(file, tensor))
        return Table(_expanded(file, tensor)[0])

    def tied(self, table: Table) -> tuple[nn.Module, nn.Module]:
        """Embedding and head that share one matrix."""
        if table.scales is None or self._library is None:
            return table, DenseLinear(table.values, None)
        matrix = TiledMatrix(self._library, table.values, table.values.shape[1], scale=table.scales)
        return NativeTable(matrix), NativeLinear(self._library, TiledLinear(matrix, None, None), self._scratch)

    def _dense(self, name: str) -> TensorInfo:
        tensor = self.entry(name)
        if tensor.form != "dense":
            raise misfit(f"{name} must be dense")
        return tensor

    def linear(self, file: TensorFile, path: str, module: nn.Module) -> nn.Module:
        """The published form of linear module `module`, whose dotted name is `path`."""
        weight = module.get_parameter("weight")
        # Published matrices are [out, in]; GPT-2 stores [in, out].
        shape = (
            (weight.shape[0], weight.shape[1]) if isinstance(module, nn.Linear) else (weight.shape[1], weight.shape[0])
        )
        tensor = self.entry(f"{path}.weight", shape)
        has_bias = getattr(module, "bias", None) is not None
        bias = self.vector(file, f"{path}.bias", tensor.rows) if has_bias else None
        if self._library is not None and (tensor.form == "packed" or tensor.dtype == "int8"):
            check_layout(file, tensor)
            published = _tiled(self._library, self.parts(file, tensor), tensor, bias)
            if tensor.stack and published.v is not None:
                shared = self._shared.setdefault(tensor.parts[1], published.v)
                assert isinstance(shared, TiledMatrix)
                published = replace(published, v=shared)
            return NativeLinear(self._library, published, self._scratch)
        if tensor.form == "packed":
            return _packed(file, tensor, bias)
        if tensor.form == "lowrank":
            u, v = _expanded(file, tensor)
            if tensor.stack:
                kept = self._shared.setdefault(tensor.parts[1], v)
                assert isinstance(kept, Tensor)
                v = kept
            return LowRankLinear(u, v, bias)
        return DenseLinear(_expanded(file, tensor)[0], bias)

    def join(self, block: nn.Module) -> None:
        """Let modules of one input below `block`, all of which were read, compute what they share once."""
        self._shared.clear()
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
    for path, module in list(root.named_modules()):
        if is_matrix(module):
            parent, _, leaf = path.rpartition(".")
            setattr(root.get_submodule(parent), leaf, reader.linear(file, prefix + path, module))
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            dotted = f"{path}.{name}" if path else name
            value = reader.vector(file, prefix + dotted, parameter.numel())
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    for block in list(root.modules()):
        reader.join(block)
        for name, child in list(block.named_children()):
            fused = RmsNorm.of(child)
            if fused is not None:
                setattr(block, name, fused)
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if tensor.is_meta:
            raise misfit(f"{prefix}{name} is not published")


def _expanded(file: TensorFile, tensor: TensorInfo) -> list[Tensor]:
    """The matrices of `tensor` ([weight] or [u, v]) in float32, int8 rows multiplied by their scales."""
    matrices = 2 if tensor.form == "lowrank" else 1
    values = [part(file, name) for name in tensor.parts[:matrices]]
    if tensor.dtype != "int8":
        return [value.float() for value in values]
    scales = [part(file, name) for name in tensor.parts[matrices:]]
    return [value.float().mul_(scale.unsqueeze(1)) for value, scale in zip(values, scales, strict=True)]


def _tiled(library: Library, parts: list[Tensor], tensor: TensorInfo, bias: Tensor | None) -> TiledLinear:
    """`parts` in hashing order, see TensorInfo."""

    def int8(values: Tensor, scale: Tensor | None) -> TiledMatrix:
        return TiledMatrix(library, values, values.shape[1], scale=scale)

    if tensor.form == "dense":
        return TiledLinear(int8(parts[0], parts[1]), None, None, bias)
    if tensor.form == "lowrank":
        return TiledLinear(None, int8(parts[1], parts[3]), int8(parts[0], parts[2]), bias)
    q, mult, scale, *factors = parts
    bits = PACKED_BITS[tensor.dtype]
    base = TiledMatrix(library, q, tensor.cols, bits=bits, group=tensor.group, mult=mult, scale=scale)
    if not factors:
        return TiledLinear(base, None, None, bias)
    # The scale of u is in v's.
    return TiledLinear(base, int8(factors[1], factors[2]), int8(factors[0], None), bias)


def _packed(file: TensorFile, tensor: TensorInfo, bias: Tensor | None) -> nn.Module:
    """Integers times multipliers are exact in float32, below 2^13; the row scale then rounds once."""
    check_layout(file, tensor)
    q = unpack(part(file, tensor.parts[0]).numpy(), tensor.cols, PACKED_BITS[tensor.dtype])
    multiplier = part(file, tensor.parts[1]).float().repeat_interleave(tensor.group, dim=1)[:, : tensor.cols]
    base = torch.from_numpy(q).float().mul_(multiplier).mul_(part(file, tensor.parts[2]).unsqueeze(1))
    if tensor.rank == 0:
        return DenseLinear(base, bias)
    u, v, s = (part(file, name).float() for name in tensor.parts[3:])
    return PackedLinear(base, u, v.mul_(s.unsqueeze(1)), bias)

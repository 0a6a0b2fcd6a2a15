"""A published model as a module tree whose factors can be trained, beside the original it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from efedllm.compression.encode import Encoded, encode_factors, encode_packed
from efedllm.compression.lowbit import LowBit, int8_factors
from efedllm.models.linear import PublishedMatrix, read_linear, read_vector
from efedllm.models.manifest import Manifest, TensorInfo
from efedllm.models.packing import unpack
from efedllm.models.skeleton import Skeleton, is_matrix
from efedllm.models.tensorfile import Part, TensorFile, check_hash


class Factored(nn.Module):
    """y = B x + U V x + b. u float32 [out, rank] and v [rank, in] are trained, v perhaps together with other matrices';
    the base B [out, in] of a packed matrix is not."""

    def __init__(self, info: TensorInfo, u: nn.Parameter, v: nn.Parameter, base: LowBit | None) -> None:
        super().__init__()
        self.info = info
        self.u = u
        self.v = v
        self.packed = base
        self.base = None if base is None else nn.Buffer(base.dense().float())
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = linear(linear(x, self.v), self.u, self.bias)
        return y if self.base is None else y + linear(x, self.base)

    def encoded(self) -> Encoded:
        """The published form of the factors as they are."""
        info, u, v = self.info, self.u.detach().double(), self.v.detach().double()
        if self.packed is not None:
            low = LowBit(
                self.packed.q,
                self.packed.mult,
                self.packed.scale,
                self.packed.bits,
                self.packed.group,
                int8_factors(u, v),
            )
            return encode_packed(info.name, info.layer, info.file, low)
        dtype = torch.float32 if info.dtype == "int8" else getattr(torch, info.dtype)
        return encode_factors(
            info.name, info.layer, info.file, u, v, dtype, int8=info.dtype == "int8", stack=info.stack
        )


class Frozen(nn.Module):
    """y = W x + b."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def original_model(source: Path, skeleton: Skeleton) -> nn.Module:
    """The checkpoint in float32, not to be trained."""
    kind = AutoModel if skeleton.family.is_encoder else AutoModelForCausalLM
    # One bar is enough: this command has its own.
    disable_progress_bar()
    model: nn.Module = kind.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)


class Student:
    """`model` computes what the published model does; `factored` are its trainable parts, by tensor name."""

    def __init__(self, original: nn.Module, directory: Path, manifest: Manifest) -> None:
        self.model = copy.deepcopy(original)
        self.factored: dict[str, Factored] = {}
        shared: dict[str, nn.Parameter] = {}
        by_file: dict[str, list[TensorInfo]] = {}
        for tensor in manifest.tensors:
            by_file.setdefault(tensor.file, []).append(tensor)
        for name, tensors in by_file.items():
            with TensorFile(directory / name) as file:
                for tensor in tensors:
                    check_hash(file, tensor)
                # Matrices first: their modules take the biases.
                for tensor in sorted(tensors, key=lambda t: t.cols == 1):
                    self._fill(file, tensor, shared)

    def parameters(self) -> list[nn.Parameter]:
        """Each once, in the order of the tensors' names."""
        found = [p for name in sorted(self.factored) for p in (self.factored[name].u, self.factored[name].v)]
        return list({id(p): p for p in found}.values())

    def _fill(self, file: TensorFile, tensor: TensorInfo, shared: dict[str, nn.Parameter]) -> None:
        path, _, leaf = tensor.name.rpartition(".")
        module = self.model.get_submodule(path)
        if not (leaf == "weight" and is_matrix(module) and tensor.cols > 1):
            value = _dense(file, tensor)
            target = module.get_parameter(leaf) if not isinstance(module, Factored | Frozen) else None
            if target is None:
                module.bias = value
            else:
                target.data.copy_(value.view(target.shape))
            return
        made: Factored | Frozen = (
            Frozen(_dense(file, tensor)) if tensor.rank == 0 else self._factors(file, tensor, shared)
        )
        if isinstance(made, Factored):
            self.factored[tensor.name] = made
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, made)

    def _factors(self, file: TensorFile, tensor: TensorInfo, shared: dict[str, nn.Parameter]) -> Factored:
        published = read_linear(file, tensor)
        u, v = published.u, published.v
        assert u is not None
        assert v is not None
        owner = tensor.stack or tensor.name
        if published.base is None:
            pair = (torch.from_numpy(m.floats().copy()) for m in (u, v))
            first, second = (nn.Parameter(values) for values in pair)
            return Factored(tensor, first, shared.setdefault(owner, second), None)
        root = torch.from_numpy(v.scales).double().sqrt()
        first = nn.Parameter((torch.from_numpy(u.values).double() * root).float())
        second = nn.Parameter((torch.from_numpy(v.values).double() * root.unsqueeze(1)).float())
        return Factored(tensor, first, second, _low_bit(published.base))


def encoded_file(directory: Path, tensors: list[TensorInfo], trained: dict[str, Factored]) -> Iterator[Encoded]:
    """The tensors of one file: trained ones as they are, the others as they were."""
    with TensorFile(directory / tensors[0].file) as file:
        for tensor in tensors:
            if tensor.name in trained:
                yield trained[tensor.name].encoded()
                continue
            slots = {name: file.slot(name) for name in tensor.parts}
            yield Encoded(tensor, {n: Part(s.dtype, s.shape, bytes(file.view(n))) for n, s in slots.items()})


def _dense(file: TensorFile, tensor: TensorInfo) -> Tensor:
    """float32 [rows, cols], or [rows] of a vector; a copy."""
    base = None if tensor.cols == 1 else read_linear(file, tensor).base
    return torch.from_numpy((read_vector(file, tensor) if base is None else base.floats()).copy())


def _low_bit(base: PublishedMatrix) -> LowBit:
    """A copy."""
    q = torch.from_numpy(unpack(base.values, base.columns, base.bits))
    mult, scale = (torch.tensor(array) for array in (base.multipliers, base.scales))
    return LowBit(q, mult, scale, base.bits, base.group)

"""One layer at a time, as functions of what they are given: what its forms would cost, and the chosen ones made.

They run in this process or as tasks of a cluster; the order of layers, files and the calibration text stay outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from efedllm.compression.calibrate import Moments
from efedllm.compression.compare import losses
from efedllm.compression.encode import Encoded, encode_dense, encode_factors, encode_packed, storage_dtype
from efedllm.compression.factor import truncate, whiten_inputs, whiten_outputs
from efedllm.compression.input_moments import Inputs
from efedllm.compression.lowbit import output_error, quantize
from efedllm.compression.plan import Choice, Group, Measured, Plan, largest_rank, stacks_of
from efedllm.compression.sensitivity import Curvature
from efedllm.compression.weighted_factors import Nested, nested_factors, unit_energy

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """What to find out about a layer. `matrices` [out, in] by name, in the `groups` that read the same input; `biased`
    those that have a bias; `table` the forms to compare for each, `factors` whether factors of all ranks too; `int8`,
    `item`: bytes of factors and weights."""

    groups: tuple[Group, ...]
    matrices: Arrays
    curvatures: dict[str, Curvature]
    biased: frozenset[str]
    table: tuple[Choice, ...]
    factors: bool
    int8: bool
    item: int


def groups_of(curvatures: Mapping[str, Curvature] | Mapping[str, Moments]) -> tuple[Group, ...]:
    """Names whose modules read the same tensor, in the order of the layer."""
    groups: dict[int, list[str]] = {}
    for name, one in curvatures.items():
        groups.setdefault(id(one) if one.inputs is None else id(one.inputs), []).append(name)
    return tuple(tuple(names) for names in groups.values())


MeasuredLayer = tuple[Measured, dict[Group, Nested], Arrays]


def measure(work: Measurement) -> MeasuredLayer:
    """What the forms cost; the factors of every rank, by themselves and stacked; the mean inputs of biased matrices."""
    table: dict[str, dict[Choice, float]] = {}
    nested: dict[Group, Nested] = {}
    for group in work.groups:
        curvature = work.curvatures[group[0]]
        if work.table:
            # Rows of 8 or 16 bits are not fitted to the inputs.
            inputs = Inputs.of(curvature.inputs, factor=any(choice.bits < 8 for choice in work.table))
            matrices = {name: work.matrices[name] for name in group}
            sensitivity = {name: work.curvatures[name].power for name in group}
            table |= losses(matrices, sensitivity, inputs, work.item, work.table)
        if work.factors:
            gram = curvature.inputs
            if curvature.mean is not None and all(name in work.biased for name in group):
                gram = gram - torch.outer(curvature.mean, curvature.mean)
            for part in [*((name,) for name in group), *stacks_of(group)]:
                weights = [work.matrices[name] for name in part]
                cap = largest_rank([(len(w), w.shape[1]) for w in weights], int8=work.int8, item=work.item)
                outputs = [one for name in part if (one := work.curvatures[name].outputs) is not None]
                nested[part] = nested_factors(weights, gram, outputs, cap)
    spectra = {part: tuple(map(float, one.losses)) for part, one in nested.items()}
    means = {name: mean for name in sorted(work.biased) if (mean := work.curvatures[name].mean) is not None}
    return Measured(work.groups, table, spectra), nested, means if work.factors else {}


@dataclass(frozen=True)
class Layer:
    """A layer to be made. `matrices` [out, in] and `vectors` by name; `biases`: name of the bias of a matrix; `moments`
    by matrix, where the text was run; `nested` factors cut to the chosen ranks, and `means` of the inputs of biased
    matrices, where curvature was measured; `stack`: whether whitened factors may share a v."""

    index: int
    file: str
    matrices: Arrays
    vectors: Arrays
    biases: dict[str, str]
    plan: Plan
    moments: dict[str, Moments] = field(default_factory=dict)
    nested: dict[Group, Nested] = field(default_factory=dict)
    means: Arrays = field(default_factory=dict)
    stack: bool = False


def make(layer: Layer) -> list[Encoded]:
    """Every tensor of the layer in its published form."""
    return list(_Maker(layer).run())


class _Maker:
    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._inputs: dict[int, Inputs] = {}
        self._shifts: Arrays = {}

    def run(self) -> Iterator[Encoded]:
        layer = self._layer
        done: set[str] = set()
        for part in layer.nested:
            yield from self._from_nested(part)
            done |= set(part)
        if layer.stack:
            for part in self._stacks():
                yield from self._whitened_stack(part)
                done |= set(part)
        for name in layer.matrices:
            if name not in done:
                yield self._matrix(name)
        for name, tensor in layer.vectors.items():
            shift = self._shifts.get(name)
            value = tensor if shift is None else (tensor.double() + shift).to(tensor.dtype)
            yield encode_dense(name, layer.index, layer.file, value)

    def _matrix(self, name: str) -> Encoded:
        layer, weight, choice = self._layer, self._layer.matrices[name], self._layer.plan[name]
        if choice.bits < 8:
            return self._packed(name, choice)
        if choice.rank == 0:
            return encode_dense(name, layer.index, layer.file, weight, int8=choice.bits == 8)
        u, v = self._factors(name, choice.rank)
        return self._lowrank(name, u, v)

    def _factors(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        weight, moments = self._layer.matrices[name], self._layer.moments.get(name)
        if moments is None:
            return truncate(weight, rank)
        mean = self._mean(name)
        if moments.inputs is not None:
            return whiten_inputs(weight, _centred(moments.inputs, mean), rank)
        assert moments.outputs is not None
        outputs = _centred(moments.outputs, None if mean is None else weight.double() @ mean)
        return whiten_outputs(weight, outputs, moments.input_power, rank)

    def _lowrank(self, name: str, u: Tensor, v: Tensor, stack: str = "") -> Encoded:
        layer, weight = self._layer, self._layer.matrices[name]
        mean = self._mean(name)
        if mean is not None:
            self._shifts[layer.biases[name]] = weight.double() @ mean - u @ (v @ mean)
        dtype = storage_dtype(weight)
        return encode_factors(name, layer.index, layer.file, u, v, dtype, int8=self._wide(name), stack=stack)

    def _wide(self, name: str) -> bool:
        return self._layer.plan[name].bits == 8

    def _mean(self, name: str) -> Tensor | None:
        """Mean input of a matrix whose bias can take up what that loses."""
        if name not in self._layer.biases:
            return None
        moments = self._layer.moments.get(name)
        return self._layer.means.get(name) if moments is None else moments.mean

    def _from_nested(self, part: Group) -> Iterator[Encoded]:
        rank = self._layer.plan[part[0]].rank
        us, v = self._layer.nested[part].at(rank, [len(self._layer.matrices[name]) for name in part])
        for name, u in zip(part, us, strict=True):
            yield self._lowrank(name, u, v, part[0] if len(part) > 1 else "")

    def _stacks(self) -> list[Group]:
        moments = {name: one for name, one in self._layer.moments.items() if one.inputs is not None}
        groups = [group for group in groups_of(moments) if len(group) > 1]
        return [group for group in groups if all(self._layer.plan[name].rank for name in group)]

    def _whitened_stack(self, part: Group) -> Iterator[Encoded]:
        """One v of as many bytes as the matrices' own would take, if the outputs then lose less of their energy."""
        layer = self._layer
        weights = [layer.matrices[name] for name in part]
        gram = layer.moments[part[0]].inputs
        assert gram is not None
        if all(name in layer.biases for name in part):
            gram = _centred(gram, layer.moments[part[0]].mean)
        rows, cols = [len(w) for w in weights], weights[0].shape[1]
        spent = sum(layer.plan[name].rank * (len(layer.matrices[name]) + cols) for name in part)
        rank = min(spent // (sum(rows) + cols), cols)
        energies = unit_energy(weights, gram)
        us, v = nested_factors(weights, gram, energies, rank).at(rank, rows)
        alone = [self._factors(name, layer.plan[name].rank) for name in part]
        lost = [
            sum(
                float(scale) * output_error(weight.double() - u @ v, gram)
                for weight, scale, (u, v) in zip(weights, energies, factors, strict=True)
            )
            for factors in ([(u, v) for u in us], alone)
        ]
        for name, u, own in zip(part, us, alone, strict=True):
            yield self._lowrank(name, u, v, part[0]) if lost[0] < lost[1] else self._lowrank(name, *own)

    def _packed(self, name: str, choice: Choice) -> Encoded:
        """A bias takes up the mean of what the outputs lose, so that the rest is fitted to the inputs' covariance."""
        layer, weight = self._layer, self._layer.matrices[name]
        moments = layer.moments[name]
        assert moments.inputs is not None
        if name not in layer.biases:
            key = id(moments.inputs)
            inputs = self._inputs.get(key) or self._inputs.setdefault(key, Inputs.of(moments.inputs))
        else:
            inputs = Inputs.of(_centred(moments.inputs, moments.mean))
        matrix = quantize(weight, inputs, choice.bits, group=choice.group, rank=choice.rank)
        mean = self._mean(name)
        if mean is not None:
            self._shifts[layer.biases[name]] = (weight.double() - matrix.dense()) @ mean
        return encode_packed(name, layer.index, layer.file, matrix)


def _centred(second: Tensor, mean: Tensor | None) -> Tensor:
    return second if mean is None else second - torch.outer(mean, mean)

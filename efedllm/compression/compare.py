"""What the forms of matrices that read the same inputs would lose, from the errors they really leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from efedllm.compression.encode import quantize_rows
from efedllm.compression.gptq import WeightRows, gptq
from efedllm.compression.input_moments import Inputs
from efedllm.compression.lowbit import residual_factors
from efedllm.compression.plan import DENSE, Choice

_SAMPLED = 1024
"""Rows of a matrix that are looked at: forms compare on those as on all."""

Losses = dict[Choice, float]


def losses(
    weights: Mapping[str, Tensor],
    sensitivity: Mapping[str, Tensor],
    inputs: Inputs,
    item: int,
    forms: Sequence[Choice],
) -> dict[str, Losses]:
    """The expected rise of the model's loss for every form of every matrix [rows, cols] that is not larger than the
    matrix as it is (`item` bytes a weight). `sensitivity` [rows]: mean square of the loss's gradient at each output.

    Errors of different rows count as uncorrelated. Integers are those of GPTQ alone. All matrices and numbers of bits
    are rounded together, whose rows do not depend on each other; of many rows only some, evenly spaced.
    """
    samples = {name: _Sample(weight, sensitivity[name]) for name, weight in weights.items()}
    found: dict[str, Losses] = {name: {} for name in weights}
    wanted = {name: [form for form in forms if _pays(form, weights[name], item)] for name in weights}
    for name, sample in samples.items():
        for form in wanted[name]:
            if form.bits == 16:
                found[name][form] = 0.0
            elif form.bits == 8:
                found[name][form] = sample.loss(inputs.loss(sample.row_errors()))
    for group in dict.fromkeys(form.group for form in forms if form.bits < 8):
        jobs = [
            (name, bits)
            for name in weights
            for bits in dict.fromkeys(form.bits for form in wanted[name] if form.bits < 8 and form.group == group)
        ]
        if not jobs:
            continue
        parts = [WeightRows.of(samples[name].w, bits) for name, bits in jobs]
        fitted = gptq(_stacked(parts), inputs, group)
        last = 0
        for (name, bits), part in zip(jobs, parts, strict=True):
            sample, first, last = samples[name], last, last + part.w.shape[1]
            own = fitted.part(slice(first, last))
            for form in wanted[name]:
                if (form.bits, form.group) != (bits, group):
                    continue
                if form.rank == 0:
                    found[name][form] = sample.loss(inputs.power * own.lost)
                    continue
                errors = sample.w - own.dense(group)
                factors = residual_factors(errors, inputs, min(form.rank, *errors.shape))
                found[name][form] = sample.loss(inputs.loss(errors - factors.transposed()))
    return {name: {form: found[name][form] for form in wanted[name]} for name in weights}


class _Sample:
    def __init__(self, weight: Tensor, sensitivity: Tensor) -> None:
        """weight [rows, cols], sensitivity [rows]."""
        stride = -(-len(weight) // _SAMPLED)
        energy = sensitivity.double() * weight.double().square().sum(dim=1)
        self.w = weight[::stride].T.float().contiguous()
        part = float(energy[::stride].sum())
        # Of rows that were left out as much is lost as of the others, by what they weigh.
        self._counts = 0.5 * sensitivity[::stride].double() * (float(energy.sum()) / part if part > 0 else 1.0)

    def loss(self, rows: Tensor) -> float:
        """Rise of the model's loss, by the mean square error of the output of every row."""
        return float((self._counts * rows).sum())

    def row_errors(self) -> Tensor:
        """What int8 rows leave over, [cols, rows] float32."""
        q, scale = quantize_rows(self.w.T)
        return self.w - q.T * scale


def _pays(form: Choice, weight: Tensor, item: int) -> bool:
    shape = (weight.shape[0], weight.shape[1])
    return form.nbytes(shape, item) <= DENSE.nbytes(shape, item)


def _stacked(parts: Sequence[WeightRows]) -> WeightRows:
    w = torch.cat([part.w for part in parts], dim=1)
    return WeightRows(w, torch.cat([part.lowest for part in parts]), torch.cat([part.highest for part in parts]))

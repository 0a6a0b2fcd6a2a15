"""Which form each matrix gets under a byte budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.compression.encode import quantize_rows
from efedllm.compression.factor import rank_for
from efedllm.compression.lowbit import GROUP, Inputs, LowBit, output_error, quantize, residual_factors
from efedllm.compression.sensitivity import Curvature
from efedllm.errors import ConfigError
from efedllm.models.packing import packed_bytes

Shape = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """The form of one matrix. bits 16: dense as it is; 8: dense int8 rows; 2 to 6: packed, with factors if rank > 0."""

    bits: int
    group: int = 0
    rank: int = 0

    def nbytes(self, shape: Shape, item: int = 2) -> int:
        """Published bytes; `item` are those of one original weight."""
        rows, cols = shape
        if self.bits == 16:
            return rows * cols * item
        if self.bits == 8:
            return rows * (cols + 4)
        return packed_bytes(rows, cols, min(self.rank, rows, cols), self.bits, self.group)


Plan = dict[str, Choice]
"""Choice by tensor name."""

DENSE = Choice(16)
INT8 = Choice(8)
_LADDER = (
    *(Choice(2, 64), Choice(3, 128), Choice(3, 64), Choice(3, 64, 8), Choice(4, 128), Choice(4, 64), Choice(4, 64, 8)),
    *(Choice(5, 64), Choice(6, 64), INT8, DENSE),
)
"""What `auto` compares. A factor pair on top of a wider base never paid: a bit more quarters the error."""


def budget_bytes(shapes: Mapping[str, Shape], budget: float) -> int:
    """`budget` of the bytes of 16-bit dense weights."""
    return int(budget * sum(2 * rows * cols for rows, cols in shapes.values()))


def losses(weight: Tensor, curvature: Curvature, inputs: Inputs, item: int = 2) -> dict[Choice, float]:
    """The expected rise of the model's loss for every form in the ladder, from the error GPTQ really leaves."""
    w = weight.double()
    bases: dict[tuple[int, int], LowBit] = {}
    found: dict[Choice, float] = {}
    for choice in _LADDER:
        if choice.nbytes((w.shape[0], w.shape[1]), item) > DENSE.nbytes((w.shape[0], w.shape[1]), item):
            continue
        if choice.bits == 16:
            error = torch.zeros_like(w)
        elif choice.bits == 8:
            q, scale = quantize_rows(w)
            error = w - q.double() * scale.double().unsqueeze(1)
        else:
            key = (choice.bits, choice.group)
            if key not in bases:
                bases[key] = quantize(w, inputs, choice.bits, group=choice.group, refine=False)
            error = w - bases[key].dense()
            if choice.rank:
                error = error - residual_factors(error, inputs.gram, min(choice.rank, *w.shape)).product()
        found[choice] = 0.5 * output_error(error, curvature.inputs, curvature.outputs)
    return found


def check_budget(shapes: Mapping[str, Shape], budget: float, item: int = 2) -> None:
    """Raises ConfigError "budget-too-small" when even the smallest forms do not fit."""
    allocate(shapes, {name: dict.fromkeys(_LADDER, 0.0) for name in shapes}, budget, item)


def allocate(
    shapes: Mapping[str, Shape], table: Mapping[str, Mapping[Choice, float]], budget: float, item: int = 2
) -> Plan:
    """The forms that lose least within `budget`: from the smallest forms upwards, always the step that saves most loss
    per byte.

    Raises ConfigError "budget-too-small".
    """
    left = budget_bytes(shapes, budget)
    names = sorted(table)
    size = {name: {choice: choice.nbytes(shapes[name], item) for choice in table[name]} for name in names}
    chosen = {name: min(size[name], key=lambda choice: (size[name][choice], table[name][choice])) for name in names}
    left -= sum(size[name][chosen[name]] for name in names)
    if left < 0:
        raise _too_small(shapes, budget, budget_bytes(shapes, budget) - left)
    while True:
        steps = [
            ((table[name][chosen[name]] - loss) / more, name, choice)
            for name in names
            for choice, loss in table[name].items()
            if 0 < (more := size[name][choice] - size[name][chosen[name]]) <= left and loss < table[name][chosen[name]]
        ]
        if not steps:
            return chosen
        _, name, choice = max(steps, key=lambda step: (step[0], step[1], -size[step[1]][step[2]]))
        left -= size[name][choice] - size[name][chosen[name]]
        chosen[name] = choice


def lowrank_int4(shapes: Mapping[str, Shape], budget: float | None, rank: int) -> Plan:
    """int4 everywhere, with the same rank; under a budget the largest rank that fits.

    Raises ConfigError "budget-too-small".
    """
    if budget is None:
        return dict.fromkeys(shapes, Choice(4, GROUP, rank))
    allowed = budget_bytes(shapes, budget)

    def plan(group: int, rank: int) -> Plan:
        """Factors that would make int4 as large as int8 rows give way to those rows."""
        base = Choice(4, group, rank)
        return {name: base if base.nbytes(shape) < INT8.nbytes(shape) else INT8 for name, shape in shapes.items()}

    def total(choices: Plan) -> int:
        return sum(choice.nbytes(shapes[name]) for name, choice in choices.items())

    largest = max(min(shape) for shape in shapes.values())
    for group in (GROUP, 2 * GROUP):
        fits = [rank for rank in range(largest + 1) if total(plan(group, rank)) <= allowed]
        if fits:
            return plan(group, max(fits))
    raise _too_small(shapes, budget, total(plan(2 * GROUP, 0)))


def all_int8(shapes: Mapping[str, Shape], budget: float | None) -> Plan:
    """Raises ConfigError "budget-too-small"."""
    needed = sum(INT8.nbytes(shape) for shape in shapes.values())
    if budget is not None and needed > budget_bytes(shapes, budget):
        raise _too_small(shapes, budget, needed)
    return dict.fromkeys(shapes, INT8)


def keep_within(shapes: Mapping[str, Shape], budget: float, *, int8: bool, item: int = 2) -> float:
    """The largest `keep` (in ten-thousandths) whose factors stay within `budget`.

    Raises ConfigError "budget-too-small".
    """
    allowed = budget_bytes(shapes, budget)

    def total(keep: float) -> int:
        return sum(factored_bytes(shape, rank_for(keep, *shape), int8=int8, item=item) for shape in shapes.values())

    for keep in range(10_000, 0, -1):
        if total(keep / 10_000) <= allowed:
            return keep / 10_000
    raise _too_small(shapes, budget, total(1e-4))


def factored_bytes(shape: Shape, rank: int, *, int8: bool, item: int = 2) -> int:
    """Published bytes of a matrix at `rank`: dense where factors would not be smaller, or have no rank."""
    rows, cols = shape
    width, scale = (1, 4) if int8 else (item, 0)
    dense = rows * (cols * width + scale)
    low = rank * (rows + cols) * width + (rows + rank) * scale
    return low if rank > 0 and low < dense else dense


def _too_small(shapes: Mapping[str, Shape], budget: float, needed: int) -> ConfigError:
    least = needed / sum(2 * rows * cols for rows, cols in shapes.values())
    return ConfigError(
        "budget-too-small",
        f"The method needs {least:.4f} of the bytes of 16-bit weights; the budget is {budget:g}.",
        "Raise --budget, or use --method auto.",
    )


def plan_to_json(plan: Plan) -> dict[str, list[int]]:
    return {name: [choice.bits, choice.group, choice.rank] for name, choice in plan.items()}


def plan_from_json(data: dict[str, list[int]]) -> Plan:
    return {name: Choice(*values) for name, values in data.items()}

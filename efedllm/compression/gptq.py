"""Integers for the rows of weight matrices that read the same inputs, each row in its own number of bits.

GPTQ (arXiv 2210.17323) as feedback of errors (arXiv 2307.13304): with the inputs' second moment H = T D T^T, T unit
upper triangular, the columns are rounded in order, each after adding to it the errors of those before it times T; what
is lost is the sum of the squares of what each rounding leaves, times D. Then sweeps of coordinate descent: each group
first takes the scale that is best for its integers, then each of its columns the integers that are best given all
others. Group scales are multiples of one row scale, so that sums over a row are sums of integers, and integers are
always chosen for the scales that are published.

Everything is [columns, rows]: a column of the weights is one stretch of memory, and products with H run over whole
groups. float32: rounding to few bits is far coarser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.compression.input_moments import Inputs

MULT_MAX = 127
# Clip search: fractions of the group's largest entry that the outermost integer stands for, then a step to either side.
_CLIPS = tuple(0.5 + 0.1 * i for i in range(6))
_CLIP_STEP = 0.05
# Room for the feedback in later groups: largest group scale over that of the weights as they are.
_HEADROOM = 1.1
# Room for the scales that a sweep finds.
_SWEEP_HEADROOM = 1.05
_SEARCHED = 1 << 17
"""Entries of a group that the clip search looks at together: what stays in a core's cache."""
_FITTED = 1 << 25
"""Entries that are fitted together. Rows do not depend on each other."""


@dataclass(frozen=True)
class WeightRows:
    """`w` [cols, rows] float32; `lowest` and `highest` [rows] float32: the integers that each row may have."""

    w: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def of(cls, w: Tensor, bits: int) -> WeightRows:
        """All rows in `bits` bits."""
        end = float(1 << (bits - 1))
        return cls(w, w.new_full((w.shape[1],), -end), w.new_full((w.shape[1],), end - 1))

    def part(self, part: slice) -> WeightRows:
        """Some of the rows, a copy."""
        return WeightRows(self.w[:, part].contiguous(), self.lowest[part], self.highest[part])


@dataclass(frozen=True)
class Fitted:
    """w ~ q * mult * unit: `q` [cols, rows] and `mult` [groups, rows] int8, mult without 0, `unit` [rows] float32.
    `lost` [rows] float64: what GPTQ loses of each row's output, in units of the inputs' power."""

    q: Tensor
    mult: Tensor
    unit: Tensor
    lost: Tensor

    def part(self, part: slice) -> Fitted:
        """Some of the rows."""
        return Fitted(self.q[:, part], self.mult[:, part], self.unit[part], self.lost[part])

    def dense(self, group: int) -> Tensor:
        """float32 [cols, rows]."""
        steps = self.mult * self.unit
        return self.q * steps.repeat_interleave(group, dim=0)[: len(self.q)]


def gptq(rows: WeightRows, inputs: Inputs, group: int) -> Fitted:
    return _joined([_gptq(rows.part(part), inputs, group) for part in _parts(rows)])


def sweep(rows: WeightRows, fitted: Fitted, inputs: Inputs, group: int) -> Fitted:
    """Every group's scale and integers once more, given all others; `rows` may be others than `fitted` was made for."""
    return _joined([_sweep(rows.part(part), fitted.part(part), inputs, group) for part in _parts(rows)])


def _parts(rows: WeightRows) -> list[slice]:
    cols, count = rows.w.shape
    step = max(1, _FITTED // cols)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _joined(parts: list[Fitted]) -> Fitted:
    if len(parts) == 1:
        return parts[0]
    q, mult = (torch.cat([getattr(one, name) for one in parts], dim=1) for name in ("q", "mult"))
    unit, lost = (torch.cat([getattr(one, name) for one in parts]) for name in ("unit", "lost"))
    return Fitted(q, mult, unit, lost)


def _gptq(rows: WeightRows, inputs: Inputs, group: int) -> Fitted:
    w, feedback = rows.w, inputs.feedback
    cols, count = w.shape
    unit = _units(rows, inputs, group)
    errors, q = torch.empty_like(w), torch.empty_like(w, dtype=torch.int8)
    mult = w.new_empty(-(-cols // group), count)
    lost = torch.zeros(count, dtype=torch.float64)
    for number, start in enumerate(range(0, cols, group)):
        stop = min(start + group, cols)
        # Weights with their feedback; after its rounding, what that leaves of each column.
        left = torch.addmm(w[start:stop], feedback[:start, start:stop].T, errors[:start])
        mult[number] = _multiplier(_clip_search(left, inputs.weights[start:stop], rows, unit), unit)
        step = mult[number] * unit
        inverse = _inverse(step)
        taken = torch.empty_like(left)
        for j in range(stop - start):
            k, line, new = start + j, left[j], taken[j]
            if j:
                line.addmv_(errors[start:k].T, feedback[start:k, k])
            _rounded(torch.mul(line, inverse, out=new), rows)
            torch.addcmul(w[k], new, step, value=-1, out=errors[k])
            line.addcmul_(new, step, value=-1)
        q[start:stop] = taken
        lost += torch.mv(left.square_().T, inputs.weights[start:stop])
    return Fitted(q, mult.to(torch.int8), unit, lost)


def _sweep(rows: WeightRows, fitted: Fitted, inputs: Inputs, group: int) -> Fitted:
    w, h = rows.w, inputs.h
    unit, mult = _with_room(fitted)
    q = fitted.q.clone()
    errors = w - Fitted(q, mult, unit, fitted.lost).dense(group)
    for number, start in enumerate(range(0, len(w), group)):
        stop = min(start + group, len(w))
        block, own = q[start:stop].float(), h[start:stop, start:stop]
        pull = h[start:stop] @ errors
        ahead = own @ block
        power = (block * ahead).sum(dim=0)
        before = mult[number] * unit
        wanted = before + (block * pull).sum(dim=0) / torch.where(power > 0, power, torch.inf)
        mult[number] = _multiplier(wanted, unit)
        step = mult[number] * unit
        pull -= ahead * (step - before)
        inverse, diagonal = _inverse(step), own.diagonal().tolist()
        moved = torch.empty_like(block)
        for j in range(stop - start):
            line, old = pull[j], block[j]
            if j:
                line.addmv_(moved[:j].T, own[:j, j], alpha=-1)
            new = _rounded(torch.addcmul(old, line, inverse, value=1 / diagonal[j]), rows)
            torch.sub(new, old, out=moved[j]).mul_(step)
            old.copy_(new)
        q[start:stop] = block
        torch.addcmul(w[start:stop], block, step, value=-1, out=errors[start:stop])
    return Fitted(q, mult.to(torch.int8), unit, fitted.lost)


def _units(rows: WeightRows, inputs: Inputs, group: int) -> Tensor:
    """[rows], so that the multipliers of every group can be expected to fit."""
    largest = torch.zeros_like(rows.lowest)
    for start in range(0, len(rows.w), group):
        part = slice(start, start + group)
        torch.maximum(largest, _clip_search(rows.w[part], inputs.weights[part], rows, None).abs_(), out=largest)
    return largest * (_HEADROOM / MULT_MAX)


def _with_room(fitted: Fitted) -> tuple[Tensor, Tensor]:
    """Units so fine that the largest multiplier of a row has only a little room above it, and the multipliers."""
    largest = fitted.mult.abs().amax(dim=0)
    unit = fitted.unit * largest * (_SWEEP_HEADROOM / MULT_MAX)
    return unit, _multiplier(fitted.mult * fitted.unit, unit)


def _clip_search(block: Tensor, weights: Tensor, rows: WeightRows, unit: Tensor | None) -> Tensor:
    """The scale [rows] of one group [columns, rows]; with `unit`, among its multiples. Either sign: the integers reach
    one further below zero than above."""
    step = max(1, _SEARCHED // len(block))
    found = []
    for first in range(0, block.shape[1], step):
        part = slice(first, first + step)
        few = WeightRows(block[:, part].contiguous(), rows.lowest[part], rows.highest[part])
        found.append(_search(few, weights, None if unit is None else unit[part]))
    return torch.cat(found)


def _search(rows: WeightRows, weights: Tensor, unit: Tensor | None) -> Tensor:
    block = rows.w
    top = block.gather(0, block.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    least = torch.full_like(top, torch.inf)
    chosen, clips, ends = torch.zeros_like(top), torch.ones_like(top), rows.lowest.clone()
    rounded = torch.empty_like(block)

    def attempt(clip: Tensor, end: Tensor) -> None:
        scale = clip * top / end
        if unit is not None:
            scale = _multiplier(scale, unit) * unit
        _rounded(torch.mul(block, _inverse(scale), out=rounded), rows)
        error = torch.mv(rounded.mul_(scale).sub_(block).square_().T, weights)
        better = error < least
        for best, value in ((least, error), (chosen, scale), (clips, clip), (ends, end)):
            torch.where(better, value, best, out=best)

    for end in (rows.lowest, rows.highest):
        for clip in _CLIPS:
            attempt(torch.full_like(top, clip), end)
    middle, end = clips.clone(), ends.clone()
    attempt(middle - _CLIP_STEP, end)
    attempt(middle + _CLIP_STEP, end)
    return chosen


def _rounded(x: Tensor, rows: WeightRows) -> Tensor:
    """In place, to the integers that the rows may have."""
    torch.maximum(x.round_(), rows.lowest, out=x)
    return torch.minimum(x, rows.highest, out=x)


def _inverse(step: Tensor) -> Tensor:
    """1 / step, and 0 of 0: what has no scale is all zeros."""
    return torch.where(step == 0, 0.0, 1 / step)


def _multiplier(scale: Tensor, unit: Tensor) -> Tensor:
    """The nearest of -127..-1, 1..127 for a scale in units of `unit`."""
    ratio = scale / torch.where(unit > 0, unit, 1.0)
    return torch.where(ratio < 0, -1.0, 1.0) * ratio.abs().round().clamp(1, MULT_MAX)

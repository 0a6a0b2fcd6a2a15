"""Integers of few bits for one weight matrix, W ~ (q * m) * scale + u diag(s) v, fitted to what its inputs need.

GPTQ (arXiv 2210.17323) with group scales that are multiples of one row scale, so that sums over a row are sums of
integers; then our refinement: the scales that are best for the integers, in closed form, and one sweep in which each
column takes the integers that are best given all others. Integers are always chosen for the scales that are published.
With a rank, the factors come first and are alternated with the integers of the rest. Everything in float64; measured
in E||(W - W') x||^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.compression.factor import whiten_inputs, whiten_outputs

GROUP = 64
# Ridge on the Gram matrix as a fraction of the mean of its diagonal.
_DAMP = 1e-2
_MAX_DAMP = 1.0
# Clip search: fractions of the group's largest entry that the outermost integer stands for.
_CLIPS = tuple(0.5 + 0.05 * i for i in range(12))
_ALTERNATIONS = 2
MULT_MAX = 127
# Room for GPTQ's corrections of the later groups: largest group scale over that of the weights as they are.
_HEADROOM = 1.1


@dataclass(frozen=True)
class Factors:
    """u diag(s) v: u int8 [rows, rank], v int8 [rank, cols], s float32 [rank]."""

    u: Tensor
    v: Tensor
    s: Tensor

    def product(self) -> Tensor:
        """float64 [rows, cols]."""
        return (self.u.double() * self.s.double()) @ self.v.double()


@dataclass(frozen=True)
class LowBit:
    """q int8 [rows, cols] within `bits` bits, mult int8 [rows, ceil(cols / group)] without 0, scale float32 [rows]."""

    q: Tensor
    mult: Tensor
    scale: Tensor
    bits: int
    group: int
    factors: Factors | None = None

    def dense(self) -> Tensor:
        """The matrix it stands for, float64 [rows, cols]."""
        steps = self.mult.double() * self.scale.double().unsqueeze(1)
        base = self.q.double() * _spread(steps, self.group, self.q.shape[1])
        return base if self.factors is None else base + self.factors.product()


@dataclass(frozen=True)
class Inputs:
    """Second moment of a matrix's inputs [cols, cols], float64: as measured, with its ridge, and the upper Cholesky
    factor of the inverse of that."""

    gram: Tensor
    damped: Tensor
    root: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Inputs:
        """The ridge is ten times as large each time it does not suffice. Inputs that were never seen (a zero Gram)
        count as uncorrelated."""
        power = gram.diagonal().mean()
        eye = torch.eye(len(gram), dtype=gram.dtype)
        damp = _DAMP
        while power > 0 and damp <= _MAX_DAMP * (1 + 1e-9):
            damped = gram + damp * power * eye
            lower, info = torch.linalg.cholesky_ex(damped)
            if int(info) == 0:
                root, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
                if int(info) == 0:
                    return cls(gram, damped, root)
            damp *= 10
        return cls(gram, eye, eye)


def quantize(
    weight: Tensor, inputs: Inputs, bits: int, *, group: int = GROUP, rank: int = 0, refine: bool = True
) -> LowBit:
    """weight [rows, cols] in integers of `bits` bits, with int8 factors of `rank` (at most the smaller side) beside
    them. `refine=False` without a rank is GPTQ alone, several times faster, for comparing widths.
    """
    w = weight.double()
    rank = min(rank, *w.shape)
    if rank == 0:
        return _Fit(w, inputs, bits, group).run(refine)
    factors = residual_factors(w, inputs.gram, rank)
    for _ in range(_ALTERNATIONS):
        low = _Fit(w - factors.product(), inputs, bits, group).run(refine)
        factors = residual_factors(w - low.dense(), inputs.gram, rank)
    return LowBit(low.q, low.mult, low.scale, bits, group, factors)


def residual_factors(error: Tensor, gram: Tensor, rank: int) -> Factors:
    """Activation-aware SVD of what a base leaves over, in int8 with one scale per rank."""
    rows, cols = error.shape
    if rows >= cols:
        u, v = whiten_inputs(error, gram, rank)
    else:
        u, v = whiten_outputs(error, error @ gram @ error.T, float(gram.diagonal().mean()), rank)
    return int8_factors(u, v)


def int8_factors(u: Tensor, v: Tensor) -> Factors:
    """u [rows, rank] times v [rank, cols], each pair of a column and a row in int8 with one scale."""
    su, sv = u.abs().amax(dim=0) / 127, v.abs().amax(dim=1) / 127
    su, sv = torch.where(su > 0, su, 1.0), torch.where(sv > 0, sv, 1.0)
    return Factors(
        (u / su).round().to(torch.int8), (v / sv.unsqueeze(1)).round().to(torch.int8), (su * sv).to(torch.float32)
    )


def output_error(error: Tensor, gram: Tensor, outputs: Tensor | None = None) -> float:
    """tr(M E G E^T) for an error E of the weights: with M the identity E||E x||^2, with M the second moment of the
    output gradients (K-FAC) twice the expected rise of the loss."""
    spread = error @ gram @ error.T
    return float(spread.diagonal().sum() if outputs is None else (spread * outputs).sum())


def _spread(scale: Tensor, group: int, cols: int) -> Tensor:
    return scale.repeat_interleave(group, dim=1)[:, :cols]


class _Fit:
    def __init__(self, w: Tensor, inputs: Inputs, bits: int, group: int) -> None:
        self._w, self._h, self._root = w, inputs.damped, inputs.root
        self._bits, self._group = bits, group
        self._lo, self._hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        self._starts = range(0, w.shape[1], group)

    def run(self, refine: bool) -> LowBit:
        unit = self._row_scales()
        q, mult = self._gptq(unit)
        if refine:
            unit, mult = self._rescaled(q, unit, mult)
            q = self._sweep(q, unit, mult)
            unit, mult = self._rescaled(q, unit, mult)
        return LowBit(q.to(torch.int8), mult.to(torch.int8), unit.float(), self._bits, self._group)

    def _round(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.where(scale == 0, 0.0, x / torch.where(scale == 0, 1.0, scale)).round().clamp(self._lo, self._hi)

    def _row_scales(self) -> Tensor:
        """float32 values [rows], so that the multipliers of every group can be expected to fit."""
        largest = torch.zeros(len(self._w), dtype=self._w.dtype)
        for start in self._starts:
            block = self._w[:, start : start + self._group]
            importance = self._root.diagonal()[start : start + self._group].pow(-2)
            largest = torch.maximum(largest, self._clip_search(block, importance, None).abs())
        return _to_single(largest * (_HEADROOM / MULT_MAX))

    def _gptq(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Integers, and multipliers of the row scales `unit`."""
        rest, root = self._w.clone(), self._root
        q = torch.zeros_like(rest)
        mults = []
        for start in self._starts:
            stop = min(start + self._group, rest.shape[1])
            block = rest[:, start:stop].clone()
            scale = self._clip_search(block, root.diagonal()[start:stop].pow(-2), unit)
            errors = torch.zeros_like(block)
            for j in range(stop - start):
                column = start + j
                q[:, column] = self._round(block[:, j], scale)
                errors[:, j] = (block[:, j] - q[:, column] * scale) / root[column, column]
                block[:, j + 1 :] -= errors[:, j : j + 1] * root[column, column + 1 : stop]
            rest[:, stop:] -= errors @ root[start:stop, stop:]
            mults.append(_multiplier(scale, unit))
        return q, torch.stack(mults, dim=1)

    def _clip_search(self, block: Tensor, importance: Tensor, unit: Tensor | None) -> Tensor:
        """The scale [rows] of one group; with `unit`, among its multiples. Either sign: the integers reach one
        further below zero than above."""
        top = block.gather(1, block.abs().argmax(dim=1, keepdim=True)).squeeze(1)
        best = torch.full_like(top, torch.inf)
        chosen = torch.zeros_like(top)
        for end in (self._lo, self._hi):
            for clip in _CLIPS:
                scale = clip * top / end
                if unit is not None:
                    scale = _multiplier(scale, unit) * unit
                step = scale.unsqueeze(1)
                error = ((block - self._round(block, step) * step).square() * importance).sum(dim=1)
                better = error < best
                best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
        return chosen

    def _rescaled(self, q: Tensor, unit: Tensor, mult: Tensor) -> tuple[Tensor, Tensor]:
        """Row scales and multipliers near the group scales that are best for the integers."""
        wanted = self._best_scales(q, mult * unit.unsqueeze(1))
        largest = wanted.abs().amax(dim=1)
        unit = torch.where(largest > 0, _to_single(largest / MULT_MAX), unit)
        mult = _multiplier(wanted, unit.unsqueeze(1))
        base = q * _spread(mult, self._group, q.shape[1])
        ahead = base @ self._h
        power, pull = (ahead * base).sum(dim=1), (ahead * self._w).sum(dim=1)
        best = _to_single(torch.where(power > 0, pull / torch.where(power > 0, power, 1.0), unit))
        return torch.where((best > 0) & torch.isfinite(best), best, unit), mult

    def _best_scales(self, q: Tensor, scale: Tensor) -> Tensor:
        """For fixed integers: a small linear system per row, one unknown per group."""
        rows, groups = scale.shape
        cols = q.shape[1]
        member = torch.zeros(cols, groups, dtype=q.dtype)
        member[torch.arange(cols), torch.arange(cols) // self._group] = 1
        wanted = (q * (self._w @ self._h)) @ member
        system = torch.empty(rows, groups, groups, dtype=q.dtype)
        for index, start in enumerate(self._starts):
            part = slice(start, start + self._group)
            system[:, index] = ((q[:, part] @ self._h[part]) * q) @ member
        # A group of zeros has an empty row and column; its scale does not matter.
        diagonal = system.diagonal(dim1=1, dim2=2)
        diagonal += 1e-9 * diagonal.mean(dim=1, keepdim=True) + 1e-300
        found, info = torch.linalg.solve_ex(system, wanted)
        usable = (info == 0).unsqueeze(1) & torch.isfinite(found) & (diagonal > 1e-200)
        return torch.where(usable, found, scale)

    def _sweep(self, q: Tensor, unit: Tensor, mult: Tensor) -> Tensor:
        cols = q.shape[1]
        wide = _spread(mult * unit.unsqueeze(1), self._group, cols)
        pull = (self._w - q * wide) @ self._h
        q = q.clone()
        for start in self._starts:
            stop = min(start + self._group, cols)
            near = pull[:, start:stop].clone()
            moved = torch.zeros_like(near)
            for j in range(stop - start):
                k = start + j
                step = wide[:, k]
                new = self._round(q[:, k] * step + near[:, j] / self._h[k, k], step)
                moved[:, j] = (new - q[:, k]) * step
                q[:, k] = new
                near -= moved[:, j : j + 1] * self._h[k, start:stop]
            pull -= moved @ self._h[start:stop]
        return q


def _multiplier(scale: Tensor, unit: Tensor) -> Tensor:
    """The nearest of -127..-1, 1..127 for a scale in units of `unit`."""
    ratio = scale / torch.where(unit > 0, unit, 1.0)
    return torch.where(ratio < 0, -1.0, 1.0) * ratio.abs().round().clamp(1, MULT_MAX)


def _to_single(x: Tensor) -> Tensor:
    """Rounded to float32, as published."""
    return x.float().double()

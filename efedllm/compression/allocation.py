"""Sharing a byte budget among matrices, each of which (or each group) comes in several forms."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, int]


@dataclass(frozen=True)
class Option:
    """One way to store a unit (a matrix, or matrices that may share a factor): what each gets, its bytes, and the
    expected rise of the model's loss."""

    choices: tuple[tuple[str, object], ...]
    nbytes: int
    loss: float


def front(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull: by rising bytes, each step saving less loss per byte than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def combine(fronts: Sequence[Sequence[Option]]) -> list[Option]:
    """The front of units that are chosen together (the Minkowski sum of their fronts)."""
    at = [0] * len(fronts)
    combined = [_joined([one[0] for one in fronts])]
    steps = _steps(fronts)
    while steps:
        unit = _next(steps, fronts, at)
        at[unit] += 1
        combined.append(_joined([one[index] for one, index in zip(fronts, at, strict=True)]))
    return combined


def choose(units: Mapping[str, Sequence[Option]], allowed: int) -> dict[str, Option] | None:
    """The options that lose least within `allowed` bytes; None when the smallest do not fit.

    Along the fronts always the step that saves most loss per byte (optimal but for the last step); what is left over
    goes to the best options that fit. Ties go to the unit whose name sorts first.
    """
    names = sorted(units)
    fronts = [front(units[name]) for name in names]
    left = allowed - sum(one[0].nbytes for one in fronts)
    if left < 0:
        return None
    at = [0] * len(fronts)
    steps = _steps(fronts)
    while steps:
        unit = _next(steps, fronts, at, left)
        if unit >= 0:
            left -= fronts[unit][at[unit] + 1].nbytes - fronts[unit][at[unit]].nbytes
            at[unit] += 1
    chosen = [one[index] for one, index in zip(fronts, at, strict=True)]
    _fill([units[name] for name in names], chosen, left)
    return dict(zip(names, chosen, strict=True))


def _fill(units: Sequence[Sequence[Option]], chosen: list[Option], left: int) -> None:
    while True:
        better = [
            (_slope(chosen[unit], option), -unit, option)
            for unit, options in enumerate(units)
            for option in options
            if chosen[unit].nbytes < option.nbytes <= chosen[unit].nbytes + left and option.loss < chosen[unit].loss
        ]
        if not better:
            return
        _, unit, option = max(better, key=lambda step: step[:2])
        left -= option.nbytes - chosen[-unit].nbytes
        chosen[-unit] = option


def _slope(a: Option, b: Option) -> float:
    """Loss saved per byte by going from a to the larger b."""
    return (a.loss - b.loss) / max(b.nbytes - a.nbytes, 1)


def _steps(fronts: Sequence[Sequence[Option]]) -> list[tuple[float, int]]:
    steps = [(-_slope(one[0], one[1]), unit) for unit, one in enumerate(fronts) if len(one) > 1]
    heapq.heapify(steps)
    return steps


def _next(
    steps: list[tuple[float, int]], fronts: Sequence[Sequence[Option]], at: Sequence[int], left: int | None = None
) -> int:
    """The unit of the best step, whose next step is queued; -1 when it costs more than `left`: the unit stays there."""
    _, unit = heapq.heappop(steps)
    one, index = fronts[unit], at[unit] + 1
    if left is not None and one[index].nbytes - one[index - 1].nbytes > left:
        return -1
    if index + 1 < len(one):
        heapq.heappush(steps, (-_slope(one[index], one[index + 1]), unit))
    return unit


def _joined(options: Sequence[Option]) -> Option:
    return Option(
        tuple(choice for option in options for choice in option.choices),
        sum(option.nbytes for option in options),
        sum(option.loss for option in options),
    )

"""Which form each matrix gets under a byte budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from efedllm.compression.allocation import Option, Shape, choose, combine, front
from efedllm.compression.factor import rank_for
from efedllm.compression.lowbit import GROUP
from efedllm.errors import ConfigError
from efedllm.models.packing import packed_bytes

__all__ = ["Choice", "Plan", "Shape"]


@dataclass(frozen=True)
class Choice:
    """The form of one matrix. bits 16: as it is; 8: int8 rows; with a rank, factors of that width. 2 to 6: packed,
    with int8 factors beside if rank > 0. `stack` names the matrix whose v this one shares, itself among them."""

    bits: int
    group: int = 0
    rank: int = 0
    stack: str = ""

    def nbytes(self, shape: Shape, item: int = 2, name: str = "") -> int:
        """Published bytes of the matrix `name`; `item` are those of one original weight."""
        rows, cols = shape
        if self.bits < 8:
            return packed_bytes(rows, cols, min(self.rank, rows, cols), self.bits, self.group)
        width, scale = (1, 4) if self.bits == 8 else (item, 0)
        if self.rank == 0:
            return rows * (cols * width + scale)
        own = rows * (self.rank * width + scale)
        return own if self.stack not in ("", name) else own + self.rank * (cols * width + scale)


Plan = dict[str, Choice]
"""Choice by tensor name."""

DENSE = Choice(16)
INT8 = Choice(8)
LADDER = (
    *(Choice(2, 64), Choice(3, 128), Choice(3, 64), Choice(3, 64, 8), Choice(4, 128), Choice(4, 64), Choice(4, 64, 8)),
    *(Choice(5, 64), Choice(6, 64), INT8, DENSE),
)
"""What `auto` compares. A factor pair on top of a wider base never paid: a bit more quarters the error."""

FACTORS_BELOW = 0.2
"""Budget under which `auto` considers factors alone as well: above it the integers always lose less."""

# Of the rank that an even share of the budget would give: what curvature calls worthless on one text may not be so on
# another.
_FLOOR = 0.3
_RANKS = 64


def budget_bytes(shapes: Mapping[str, Shape], budget: float) -> int:
    """`budget` of the bytes of 16-bit dense weights."""
    return int(budget * sum(2 * rows * cols for rows, cols in shapes.values()))


Group = tuple[str, ...]
"""Matrices that read the same input; or one matrix alone."""


@dataclass(frozen=True)
class Measured:
    """What the forms of the matrices of one layer cost. `table`: forms of each matrix by itself. `spectra`: the loss of
    factors of rank 0, 1, ... of each matrix and of those stacks that are considered."""

    groups: tuple[Group, ...]
    table: dict[str, dict[Choice, float]]
    spectra: dict[Group, tuple[float, ...]]


def stacks_of(group: Group) -> list[Group]:
    """Which parts of a group may share one v: all of it, and of three (query, key, value) the last two."""
    return [] if len(group) < 2 else [group] if len(group) == 2 else [group, group[1:]]


def partitions(group: Group) -> list[list[Group]]:
    """The ways to store a group: each matrix by itself, or some stacked."""
    alone: list[Group] = [(name,) for name in group]
    ways = [alone]
    for stack in stacks_of(group):
        ways.append([*((name,) for name in group if name not in stack), stack])
    return ways


def largest_rank(shapes: Sequence[Shape], *, int8: bool, item: int = 2) -> int:
    """Ranks above it make factors larger than the dense matrices they stand for."""
    rows, cols = sum(shape[0] for shape in shapes), shapes[0][1]
    dense = (INT8 if int8 else DENSE).nbytes((rows, cols), item)
    return min(rows, cols, dense // ((rows + cols) * (1 if int8 else item)))


def allocate(
    shapes: Mapping[str, Shape], table: Mapping[str, Mapping[Choice, float]], budget: float, item: int = 2
) -> Plan:
    """The forms that lose least within `budget`, each matrix by itself. Raises ConfigError "budget-too-small"."""
    units = {name: _table_options(name, shapes[name], table[name], item) for name in table}
    return _chosen(shapes, units, budget)


def allocate_groups(
    shapes: Mapping[str, Shape], layers: Sequence[Measured], budget: float, *, int8: bool, item: int = 2
) -> Plan:
    """Likewise, with factors of every rank and shared ones among the forms; factors are int8 if `int8`, else 16-bit.

    No factors get less than a share of the rank of an even distribution. Raises ConfigError "budget-too-small".
    """
    units: dict[str, list[Option]] = {}
    even = min(1.0, budget * (2 if int8 else 1))
    for layer in layers:
        for group in layer.groups:
            options: list[Option] = []
            for partition in partitions(group):
                if any(part not in layer.spectra and len(part) > 1 for part in partition):
                    continue
                fronts = [
                    front(_part_options(part, shapes, layer, int8=int8, item=item, even=even)) for part in partition
                ]
                if all(fronts):
                    options += combine(fronts)
            units[group[0]] = options
    return _chosen(shapes, units, budget)


def _part_options(
    part: Group, shapes: Mapping[str, Shape], layer: Measured, *, int8: bool, item: int, even: float
) -> list[Option]:
    """A matrix by itself, or a stack."""
    options = _table_options(part[0], shapes[part[0]], layer.table.get(part[0], {}), item) if len(part) == 1 else []
    spectrum = layer.spectra.get(part)
    if spectrum is None:
        return options
    rows, cols = sum(shapes[name][0] for name in part), shapes[part[0]][1]
    least = max(1, int(_FLOOR * rank_for(even, rows, cols)))
    step = max(1, min(rows, cols) // _RANKS)
    for rank in range(-(-least // step) * step, len(spectrum), step):
        choice = Choice(8 if int8 else 16, rank=rank, stack=part[0] if len(part) > 1 else "")
        size = sum(choice.nbytes(shapes[name], item, name) for name in part)
        options.append(Option(tuple((name, choice) for name in part), size, spectrum[rank]))
    return options


def _table_options(name: str, shape: Shape, table: Mapping[Choice, float], item: int) -> list[Option]:
    return [Option(((name, choice),), choice.nbytes(shape, item, name), loss) for choice, loss in table.items()]


def _chosen(shapes: Mapping[str, Shape], units: Mapping[str, Sequence[Option]], budget: float) -> Plan:
    chosen = choose(units, budget_bytes(shapes, budget)) if all(units.values()) else None
    if chosen is None:
        raise _too_small(shapes, budget, sum(min((o.nbytes for o in options), default=0) for options in units.values()))
    plan: Plan = {}
    for option in chosen.values():
        for name, choice in option.choices:
            assert isinstance(choice, Choice)
            plan[name] = choice
    return plan


def check_budget(shapes: Mapping[str, Shape], budget: float, item: int = 2) -> None:
    """Raises ConfigError "budget-too-small" when even the smallest integers do not fit."""
    allocate(shapes, {name: dict.fromkeys(LADDER, 0.0) for name in shapes}, budget, item)


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


def uniform(shapes: Mapping[str, Shape], keep: float, *, int8: bool, item: int = 2) -> Plan:
    """Factors of the rank that keeps `keep` of each matrix's parameters; dense where they would not be smaller."""
    dense = INT8 if int8 else DENSE
    plan: Plan = {}
    for name, shape in shapes.items():
        factors = replace(dense, rank=rank_for(keep, *shape))
        pays = keep < 1 and factors.rank > 0 and factors.nbytes(shape, item) < dense.nbytes(shape, item)
        plan[name] = factors if pays else dense
    return plan


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
    base = INT8 if int8 else DENSE
    dense = base.nbytes(shape, item)
    return min(replace(base, rank=rank).nbytes(shape, item), dense) if rank > 0 else dense


def _too_small(shapes: Mapping[str, Shape], budget: float, needed: int) -> ConfigError:
    least = needed / sum(2 * rows * cols for rows, cols in shapes.values())
    return ConfigError(
        "budget-too-small",
        f"The method needs {least:.4f} of the bytes of 16-bit weights; the budget is {budget:g}.",
        "Raise --budget, or use --method auto.",
    )


def plan_to_json(plan: Plan) -> dict[str, list[int | str]]:
    return {name: [choice.bits, choice.group, choice.rank, choice.stack] for name, choice in plan.items()}


def plan_from_json(data: dict[str, list[int | str]]) -> Plan:
    return {name: Choice(int(b), int(g), int(r), str(stack)) for name, (b, g, r, stack) in data.items()}

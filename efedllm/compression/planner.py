"""Which form each matrix gets by a method and its budget, with or without what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from efedllm.compression.allocation import Shape
from efedllm.compression.options import SVD_METHODS, CompressOptions
from efedllm.compression.plan import (
    DENSE,
    FACTORS_BELOW,
    INT8,
    LADDER,
    Choice,
    Group,
    Measured,
    Plan,
    all_int8,
    allocate_groups,
    check_budget,
    keep_within,
    lowrank_int4,
    uniform,
)

RANK = 8
"""Of the factors beside int4 where no budget sets it."""


class Planner:
    """`keep`: fraction of the parameters that factors of the SVD methods keep; `measures`: whether the method looks at
    what forms cost, `factors`: at those of all ranks as well; `fixed`: the plan of a method that does not look."""

    def __init__(self, options: CompressOptions, shapes: Mapping[str, Shape], item: int) -> None:
        """`shapes` of the matrices by name, `item` bytes of one original weight. Raises ConfigError
        "budget-too-small"."""
        self._options, self._shapes, self._item = options, shapes, item
        self.keep = options.keep
        if options.budget is not None and options.method in SVD_METHODS:
            self.keep = keep_within(shapes, options.budget, int8=options.int8, item=item)
        self.measures = options.method in ("auto", "kfac")
        budget = options.share or 1.0
        self.factors = options.method == "kfac" or (options.method == "auto" and budget < FACTORS_BELOW)
        # Beside integers, factors are integers too.
        self.int8_factors = options.int8 or options.method == "auto"
        self.fixed = self._without_measuring()

    @property
    def table(self) -> tuple[Choice, ...]:
        """The forms of a single matrix that are compared, besides factors."""
        if self._options.method == "kfac":
            return () if self._options.all_factored else (INT8 if self._options.int8 else DENSE,)
        return tuple(choice for choice in LADDER if choice != DENSE or not self._options.integers)

    def allocate(self, measured: Sequence[Measured]) -> Plan:
        """Raises ConfigError "budget-too-small"."""
        budget = self._options.share
        assert budget is not None
        return allocate_groups(self._shapes, measured, budget, int8=self.int8_factors, item=self._item)

    def _without_measuring(self) -> Plan | None:
        options, shapes = self._options, self._shapes
        if self.measures:
            budget = options.share
            assert budget is not None
            if self.factors:
                self.allocate([self._costless()])
            else:
                check_budget(shapes, budget, self._item)
            return None
        if options.method == "int8":
            return all_int8(shapes, options.budget)
        if options.method == "lowrank+int4":
            return lowrank_int4(shapes, options.budget, RANK)
        return uniform(shapes, self.keep, int8=options.int8, item=self._item)

    def _costless(self) -> Measured:
        """All forms there are, as if none lost anything."""
        spectra: dict[Group, tuple[float, ...]]
        spectra = {(name,): (0.0,) * (min(shape) + 1) for name, shape in self._shapes.items()}
        return Measured(tuple(spectra), {name: dict.fromkeys(self.table, 0.0) for name in self._shapes}, spectra)

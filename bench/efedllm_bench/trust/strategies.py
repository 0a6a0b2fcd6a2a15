"""How a node decides which of its next jobs to cheat on, from what it can see on chain. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from efedllm_bench.trust.rule import ACTIVE, Ints

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """What every node sees of itself at the start of an epoch, arrays of shape (n,)."""

    epoch: int
    trust: Ints  # ppm
    standing: Ints
    rate: Ints  # audit rate, ppm
    jobs: int  # hop-jobs it will serve in this epoch


class Strategy(Protocol):
    """A way to cheat. `withholds`: hide the bytes of a bad job that is audited, to fail instead of being slashed."""

    @property
    def withholds(self) -> bool: ...

    @property
    def leaves(self) -> bool:
        """Never comes back after an exclusion."""

    def cheats(self, view: View) -> Floats:
        """Probability that a job of this epoch is bad, shape (n,)."""


@dataclass(frozen=True)
class Sometimes:
    """Cheats on a share `rho` of its jobs, chosen at random; 0 is honest, 1 is always."""

    rho: float
    withholds: bool = False
    leaves: bool = False

    def cheats(self, view: View) -> Floats:
        return np.full(len(view.trust), self.rho)


@dataclass(frozen=True)
class OnOff:
    """Builds trust with honest work and cheats on everything while its trust is at least `on`, ppm."""

    on: int
    withholds: bool = False
    leaves: bool = False

    def cheats(self, view: View) -> Floats:
        return np.where(view.trust >= self.on, 1.0, 0.0)


@dataclass(frozen=True)
class RateAware:
    """Follows its public audit rate: one bad job an epoch while active and audited at no more than `ceiling`, ppm.

    Which jobs are audited nobody knows while serving: the seed is fixed after the epoch. So this is the best an
    adversary that knows the rule can make of what it sees.
    """

    ceiling: int
    withholds: bool = False
    leaves: bool = False

    def cheats(self, view: View) -> Floats:
        quiet = (view.rate <= self.ceiling) & (view.standing == ACTIVE)
        return np.where(quiet, 1.0 / max(view.jobs, 1), 0.0)


@dataclass(frozen=True)
class Later:
    """`strategy` from epoch `start` on, honest before: an established node turns."""

    start: int
    strategy: Strategy

    @property
    def withholds(self) -> bool:
        return self.strategy.withholds

    @property
    def leaves(self) -> bool:
        return self.strategy.leaves

    def cheats(self, view: View) -> Floats:
        if view.epoch < self.start:
            return np.zeros(len(view.trust))
        return self.strategy.cheats(view)

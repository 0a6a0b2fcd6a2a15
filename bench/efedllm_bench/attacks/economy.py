"""What a cheat gains and loses, in tokens, and how surely it is found after several audits. Pure functions.

Gains are compute: a node that saves a fifth of the seconds of a hop saves 200 of 1,000 tokens. Losses are stake over
the price of a token, so that both can be compared with the fees that a node lives on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from efedllm.chain.amounts import WEI
from efedllm.commitments.messages import BPS
from efedllm_bench.attacks.lab import RANGES
from efedllm_bench.attacks.statistics import Interval
from efedllm_deploy.profile import Profile

TOKENS = 1000
PRICE = WEI
"""wei for 1,000 tokens of a hop: the price of docs/operators.md, and of the first nodes of `efedllm up`."""

AUDITS = (1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Losses:
    """Least stake of a hop of `layers` layers, and the parts of it that a first and a later severe verdict take, all in
    tokens at PRICE."""

    layers: int
    stake_tokens: int
    first_bps: int
    repeat_bps: int

    @classmethod
    def of(cls, profile: Profile) -> Losses:
        """Of a network profile, for the first hop of the lab's route."""
        layers = RANGES[0][1] - RANGES[0][0]
        committee = profile.committee
        stake = int(profile.registry.min_stake_per_layer) * layers
        return cls(layers, stake * TOKENS // PRICE, committee.slash_first_bps, committee.slash_repeat_bps)

    def report(self) -> dict[str, int]:
        """With the tokens that both parts are."""
        return {**asdict(self), "first_tokens": self.first, "repeat_tokens": self.repeat}

    @property
    def first(self) -> int:
        return self.stake_tokens * self.first_bps // BPS

    @property
    def repeat(self) -> int:
        return self.stake_tokens * self.repeat_bps // BPS


def tokens_saved(share: float) -> float:
    """Of 1,000 tokens served, those whose compute a cheat saves that takes 1 - `share` of the seconds; not below 0."""
    return round(TOKENS * max(share, 0.0), 0)


def at_stake(slashed: Interval, losses: Mapping[str, Losses]) -> dict[str, dict[str, int]]:
    """Tokens that one audit of the cheat takes on average from a node's first offence and from a later one: only a
    severe verdict takes stake."""
    return {
        name: {"first": round(slashed.share * loss.first), "repeat": round(slashed.share * loss.repeat)}
        for name, loss in losses.items()
    }


def detection_after(found: Interval) -> dict[str, list[float]]:
    """1 - (1 - D)^N after N audits of cheated jobs, with the ends that D's interval gives: [low, share, high]."""
    ends = (found.low, found.share, found.high)
    return {str(count): [round(1 - (1 - one) ** count, 4) for one in ends] for count in AUDITS}

"""The integer trust rule of VerifierCommittee.sol and Trust.sol, for many nodes at once.

Pure functions over frozen arrays of int64, equal to the contract to the last integer: `tests/trust` runs the compiled
contract beside it. Every quantity fits: masses decay by 1/64 an epoch, so alpha stays under 1.7e9 and beta under 4.1e10
whatever the verdicts, and 1e6 * alpha under 2^63.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from efedllm_deploy.profile import Profile

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

PPM = 1_000_000
BPS = 10_000
UNIT = 100_000  # weight of one unit: a tenth of a full audit
FAIL_FACTOR = 50
DECAY_SHIFT = 6
MAX_DECAY_STEPS = 64
MAX_OFFENCES = 2**16 - 1

EXCLUDED, PROBATION, ACTIVE = 0, 1, 2


@dataclass(frozen=True)
class Rule:
    """Parameters of the committee: ppm and basis points as on chain, `seat_stake` in wei."""

    committee_size: int
    theta: int
    reentry: int
    prior_mass: int
    p_min: int
    p_max: int
    slash_first_bps: int
    slash_repeat_bps: int
    no_reveal_bps: int
    deviation_bps: int
    probation_cap_bps: int
    exclusion_epochs: int
    seat_stake: int
    decay_shift: int = DECAY_SHIFT  # a constant of the contract; other values only in sweeps

    @classmethod
    def of(cls, profile: Profile) -> Rule:
        """The rule of a deployment profile."""
        return cls(
            **{part.name: getattr(profile.committee, part.name) for part in fields(cls) if part.default is MISSING}
        )


@dataclass(frozen=True)
class TrustState:
    """Masses and exclusions of n nodes, int64 arrays of shape (n,); a fresh address is all zero."""

    alpha: Ints
    beta: Ints
    epoch: Ints  # of the last final verdict
    offences: Ints
    jailed_until: Ints  # first epoch in which the node may work again; 0 = not since it regained trust

    def __len__(self) -> int:
        return len(self.alpha)


@dataclass(frozen=True)
class Verdicts:
    """Final verdicts of one epoch, arrays of shape (n,). `judged` is False where no quorum formed: nothing happens."""

    passed: Ints  # units, tenths of a full audit
    failed: Ints
    severe: Bools
    judged: Bools


@dataclass(frozen=True)
class Applied:
    """What a finalised epoch changed."""

    state: TrustState
    before: Ints  # score, ppm, decayed to the epoch judged
    after: Ints
    slash_bps: Ints  # share of each node's stake to burn, 0 for most


def fresh(n: int) -> TrustState:
    """n nodes without history."""
    zero = np.zeros(n, dtype=np.int64)
    return TrustState(zero, zero, zero, zero, zero)


def decayed(state: TrustState, epoch: int, shift: int = DECAY_SHIFT) -> tuple[Ints, Ints]:
    """Masses at `epoch`: a -= a >> shift, and b alike, for each epoch since the last verdict, at most 64 times."""
    alpha, beta = state.alpha.copy(), state.beta.copy()
    steps = np.clip(epoch - state.epoch, 0, MAX_DECAY_STEPS)
    # Masses under 2^shift do not decay, so nodes without history need no steps.
    steps[(alpha < 1 << shift) & (beta < 1 << shift)] = 0
    for step in range(int(steps.max(initial=0))):
        due = steps > step
        alpha -= np.where(due, alpha >> shift, 0)
        beta -= np.where(due, beta >> shift, 0)
    return alpha, beta


def score(alpha: Ints, beta: Ints, prior_mass: int) -> Ints:
    """1e6 * alpha / (alpha + beta + priorMass), ppm, rounded down."""
    result: Ints = PPM * alpha // (alpha + beta + prior_mass)
    return result


def trust(state: TrustState, rule: Rule, current: int) -> Ints:
    """`trustOf` during epoch `current`, ppm: decay runs to the last epoch that ended."""
    return score(*decayed(state, current - 1, rule.decay_shift), rule.prior_mass)


def standing(state: TrustState, rule: Rule, current: int, scores: Ints | None = None) -> Ints:
    """`standingOf`: EXCLUDED, PROBATION or ACTIVE. `scores` saves computing `trust` again."""
    scores = trust(state, rule, current) if scores is None else scores
    mark = np.where(state.jailed_until == 0, rule.theta, rule.reentry)
    return np.where(state.jailed_until > current, EXCLUDED, np.where(scores >= mark, ACTIVE, PROBATION))


def audit_rate(scores: Ints, rule: Rule) -> Ints:
    """`auditRate`: pMin + (pMax - pMin) * (1 - trust), ppm, of nodes with these scores."""
    return rule.p_min + (rule.p_max - rule.p_min) * (PPM - scores) // PPM


def apply(state: TrustState, rule: Rule, epoch: int, verdicts: Verdicts) -> Applied:
    """`finalize` of `epoch`, which happens during `epoch + 1`. Epochs must not run backwards."""
    judged, failed = verdicts.judged, verdicts.judged & (verdicts.failed != 0)
    alpha, beta = decayed(state, epoch, rule.decay_shift)
    before = score(alpha, beta, rule.prior_mass)
    counted_alpha = np.where(failed, alpha >> 2, alpha + UNIT * verdicts.passed)
    counted_beta = np.where(failed, beta + FAIL_FACTOR * UNIT * verdicts.failed, beta)
    alpha, beta = np.where(judged, counted_alpha, state.alpha), np.where(judged, counted_beta, state.beta)
    after = np.where(judged, score(counted_alpha, counted_beta, rule.prior_mass), before)
    severe = failed & verdicts.severe
    excluded = failed & ((after < rule.theta) | verdicts.severe)
    jailed = np.where(excluded, np.maximum(state.jailed_until, epoch + rule.exclusion_epochs), state.jailed_until)
    back = judged & ~failed & (jailed != 0) & (jailed <= epoch + 1) & (after >= rule.reentry)
    offences = np.where(severe, np.minimum(state.offences + 1, MAX_OFFENCES), state.offences)
    slash = np.where(offences == 1, rule.slash_first_bps, rule.slash_repeat_bps)
    new = TrustState(alpha, beta, np.where(judged, epoch, state.epoch), offences, np.where(back, 0, jailed))
    return Applied(new, before, after, np.where(severe, slash, 0))


def replaced(state: TrustState, where: Bools) -> TrustState:
    """The same with a new identity, and no history, `where` true."""
    return replace(state, **{name: np.where(where, 0, getattr(state, name)) for name in state.__dataclass_fields__})

"""The verifier's dilemma: what strategies of verifiers earn in the attestation game.

Verdicts, quorums, digests, points and slashes are those of the contract (committee.py, compared with it on
random histories; `settle` is compared on the very reports of this game). Money is in fees of one hop-job. numpy's PCG64
with a fixed seed draws everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from efedllm_bench.trust import committee as com
from efedllm_bench.trust.rule import BPS, PPM, Rule
from efedllm_deploy.profile import Profile
from efedllm_verifier.lot import FAILED_CAP, FULL_UNITS, PASSED_CAP, Verdict

HONEST = "honest"
LAZY_PASS = "lazy pass"
LAZY_FAIL = "lazy fail"
COPY = "copy"  # waits for the others' reveals: too late to commit, so it commits a blind value it cannot open
ABSENT = "absent"
TAP_GUESS = "tap guess"  # passes without computing and makes up a digest
HALF = "half a hop"  # runs half of the layers: sees nothing wrong, and cannot know the taps at the end
FALSE_ACCUSER = "false accuser"  # computes, then fails one node in ten whatever it did
SILENT = "lazy, silent if caught"  # passes unseen; reveals last, and nothing if that costs less than being judged
COLLUDE = "collude"  # all of them pass everything with one agreed digest
ACCUSED = 10
# Fingerprints; MADE_UP_TAP + i is verifier i's own.
TRUE_TAP, AGREED_TAP, MADE_UP_TAP = 1, 2, 3
STRATEGIES = (HONEST, LAZY_PASS, SILENT, LAZY_FAIL, COPY, ABSENT, TAP_GUESS, HALF, FALSE_ACCUSER)


@dataclass(frozen=True)
class Game:
    """One network. Defaults of money: an honest hop costs half its fee, an audit a tenth of that."""

    rule: Rule
    phi_bps: int  # emission, as a share of what clients pay
    verifiers_bps: int  # share of the emission that verifiers get
    seat_stake: float  # fees
    nodes: int = 40
    jobs: int = 24  # of a node in an epoch
    audit_cost: float = 0.05  # fees
    failing: float = 0.0  # probability that a node cheats in an epoch, and is seen by whoever computes
    taps: bool = True  # nodes serve an exact model; float models have no taps
    tap_guess: float = 2.0**-32  # chance of a made-up fingerprint: the contract keeps 32 bits
    seed: int = 1

    @property
    def audit_rate(self) -> float:
        """Of honest nodes in the long run at this load."""
        return steady_rate(self.rule, self.jobs)

    @property
    def reward(self) -> float:
        """What an audit earns when everybody works, fees."""
        paid = self.phi_bps / BPS * self.verifiers_bps / BPS
        return paid / (self.audit_rate * self.rule.committee_size)


@dataclass(frozen=True)
class Payoff:
    """Of one strategy: means over its verifiers, per audit it was drawn for, in fees."""

    per_audit: float
    reward: float
    cost: float
    slashed: float
    slash_events_per_epoch: float


@dataclass(frozen=True)
class AuditedNode:
    """What the audits of a node find in one epoch."""

    audits: int
    truth: Verdict


@dataclass
class _Account:
    audits: int = 0
    reward: float = 0.0
    cost: float = 0.0
    slashed: float = 0.0
    slashes: int = 0


def steady_rate(rule: Rule, jobs: int) -> float:
    """Audit rate (0..1) at which trust of an honest node with `jobs` full jobs an epoch stands still."""
    full = 10 * 100_000  # mass of one audit
    rate = rule.p_max / PPM
    for _ in range(200):
        alpha = jobs * rate * full * 2**rule.decay_shift
        trust = alpha / (alpha + rule.prior_mass)
        rate = (rate + (rule.p_min + (rule.p_max - rule.p_min) * (1 - trust)) / PPM) / 2
    return rate


def of(profile: Profile, stake_per_seat: float, **changes: object) -> Game:
    """The game at a profile's parameters; `stake_per_seat` in fees."""
    values: dict[str, object] = {
        "rule": Rule.of(profile),
        "phi_bps": profile.rewards.phi_bps,
        "verifiers_bps": profile.rewards.verifiers_bps,
        "seat_stake": stake_per_seat,
    }
    return Game(**{**values, **changes})  # type: ignore[arg-type]


def needed_share(game: Game, margin: float = 1.2) -> float:
    """Share of what clients pay that must go to verifiers for honest work to earn `margin` times its cost."""
    return margin * game.audit_rate * game.rule.committee_size * game.audit_cost


def least_jobs(game: Game) -> int | None:
    """Jobs of a node in an epoch, up to 1,000, from which honest work is paid at least its cost; None if never.

    The more jobs, the more trust, the smaller the share of them that is audited.
    """
    return next((jobs for jobs in range(1, 1_001) if replace(game, jobs=jobs).reward >= game.audit_cost), None)


def deterring_failures(game: Game) -> float:
    """Share of a node's epochs that must fail for passing unseen to earn less than honest work, without taps.

    One failure among the nodes of an epoch costs the slash; each node saves the cost of its audits.
    """
    saved = game.jobs * game.audit_rate * game.audit_cost
    return saved / (game.seat_stake * game.rule.deviation_bps / BPS)


def play(game: Game, strategies: Sequence[str], epochs: int) -> dict[str, Payoff]:
    """`strategies[i]` is played by verifier i for `epochs` epochs; stakes are refilled: every epoch counts alike."""
    rng = np.random.default_rng(game.seed)
    accounts = [_Account() for _ in strategies]
    for _ in range(epochs):
        _epoch(game, strategies, accounts, rng)
    return {name: _payoff(name, strategies, accounts, epochs) for name in dict.fromkeys(strategies)}


def settle(
    rule: Rule,
    drawn: Sequence[Collection[int]],
    said: Sequence[Mapping[int, com.Said]],
    verifiers: int,
    silent: Collection[int] = (),
) -> list[com.Judgement | None]:
    """What the contract finds about every verifier, None where it has nothing to judge.

    drawn[i], said[i]: the committee of node i and what its members revealed. `silent`: committed, revealed nothing.
    """
    finals = {str(i): com.final(list(said[i].values()), len(members)) for i, members in enumerate(drawn)}
    judgements: list[com.Judgement | None] = []
    for member in range(verifiers):
        own = {str(i): reports[member] for i, reports in enumerate(said) if member in reports}
        missed = any(member in members and finals[str(i)] is not None for i, members in enumerate(drawn))
        if own:
            judgements.append(com.judge(own, finals, rule.deviation_bps))
        elif missed or member in silent:
            judgements.append(com.Judgement(com.NO_REVEAL, 0, rule.no_reveal_bps))
        else:
            judgements.append(None)
    return judgements


def report(
    game: Game, strategy: str, member: int, node: AuditedNode, index: int, rng: np.random.Generator
) -> com.Said | None:
    """What verifier `member` reveals about node number `index`; None if nothing."""
    units = min(FULL_UNITS * node.audits, PASSED_CAP)
    passing = Verdict(units, 0, False)
    failing = Verdict(0, min(units, FAILED_CAP), True)
    if strategy == TAP_GUESS:
        tap = TRUE_TAP if rng.random() < game.tap_guess else MADE_UP_TAP + member
        return com.Said(passing, tap if game.taps else 0)
    if strategy == FALSE_ACCUSER and index % ACCUSED == 0:
        return com.Said(failing)
    # Taps are claimed beside a pass only.
    honest = com.Said(node.truth, TRUE_TAP if game.taps and not node.truth.failed else 0)
    reports = {
        HONEST: honest,
        FALSE_ACCUSER: honest,
        LAZY_PASS: com.Said(passing),
        SILENT: com.Said(passing),
        HALF: com.Said(passing),
        LAZY_FAIL: com.Said(failing),
        COLLUDE: com.Said(passing, AGREED_TAP if game.taps else 0),
    }
    return reports.get(strategy)


def _epoch(game: Game, strategies: Sequence[str], accounts: Sequence[_Account], rng: np.random.Generator) -> None:
    rule, v = game.rule, len(strategies)
    nodes = [_node(game, rng) for _ in range(game.nodes)]
    size = min(rule.committee_size, v)
    drawn = [rng.choice(v, size, replace=False).tolist() for _ in nodes]
    said: list[dict[int, com.Said]] = [{} for _ in nodes]
    silent = set()
    for i, node in enumerate(nodes):
        if node.audits == 0:
            continue
        for member in drawn[i]:
            accounts[member].audits += node.audits
            accounts[member].cost += node.audits * game.audit_cost * _work(strategies[member])
            revealed = report(game, strategies[member], member, node, i, rng)
            if revealed is not None:
                said[i][member] = revealed
            elif strategies[member] == COPY:
                silent.add(member)
    for member, strategy in enumerate(strategies):
        if strategy == SILENT:
            _withdraw(rule, member, drawn, said, silent, v)
    judgements = settle(rule, drawn, said, v, silent)
    pool = game.nodes * game.jobs * game.phi_bps / BPS * game.verifiers_bps / BPS
    whole = sum(judgement.points for judgement in judgements if judgement is not None)
    for account, judgement in zip(accounts, judgements, strict=True):
        if judgement is not None:
            account.reward += pool * judgement.points / whole if whole else 0.0
            account.slashed += game.seat_stake * judgement.slash_bps / BPS
            account.slashes += judgement.slash_bps > 0


def _node(game: Game, rng: np.random.Generator) -> AuditedNode:
    audits = int(rng.binomial(game.jobs, game.audit_rate))
    bad = audits > 0 and bool(rng.random() < game.failing)
    units = FULL_UNITS * audits
    return AuditedNode(
        audits, Verdict(0, min(units, FAILED_CAP), True) if bad else Verdict(min(units, PASSED_CAP), 0, False)
    )


def _withdraw(
    rule: Rule,
    member: int,
    drawn: Sequence[Collection[int]],
    said: Sequence[dict[int, com.Said]],
    silent: set[int],
    verifiers: int,
) -> None:
    """The last to reveal sees what the others did: silence costs less than a deviation, and both cost the epoch."""
    judgement = settle(rule, drawn, said, verifiers, silent)[member]
    if judgement is not None and judgement.slash_bps > rule.no_reveal_bps:
        for reports in said:
            reports.pop(member, None)
        silent.add(member)


def _work(strategy: str) -> float:
    """Share of an audit that a strategy computes."""
    return {HONEST: 1.0, FALSE_ACCUSER: 1.0, HALF: 0.5}.get(strategy, 0.0)


def _payoff(name: str, strategies: Sequence[str], accounts: Sequence[_Account], epochs: int) -> Payoff:
    mine = [account for account, strategy in zip(accounts, strategies, strict=True) if strategy == name]
    audits = max(sum(account.audits for account in mine), 1)
    reward, cost, slashed = (
        sum(getattr(account, part) for account in mine) / audits for part in ("reward", "cost", "slashed")
    )
    events = sum(account.slashes for account in mine) / (epochs * len(mine))
    return Payoff(reward - cost - slashed, reward, cost, slashed, events)

"""The verifier's dilemma: what strategies of verifiers earn in the attestation game.

Verdicts, quorums, points and slashes are those of the contract (committee.py, compared with it on random histories).
Tap digests and canaries follow the design: among the revealers of a node the digest that a quorum shows is final, and
another digest is a deviation; a canary is opened before the tally, slashes who passed it, pays who failed it, and is
taken out of the verdicts. Money is in fees of one hop-job. numpy's PCG64 with a fixed seed draws everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.trust import committee as com
from bench.trust.rule import BPS, PPM, Rule
from deploy.profile import Profile
from verifier.sampling import FAILED_CAP, FULL_UNITS, PASSED_CAP, Verdict

HONEST = "honest"
LAZY_PASS = "lazy pass"
LAZY_FAIL = "lazy fail"
COPY = "copy"  # waits for the others' reveals: too late to commit, so it commits a blind value it cannot open
ABSENT = "absent"
TAP_GUESS = "tap guess"  # passes without computing and guesses the digest
HALF = "half a hop"  # runs half of the layers: sees nothing wrong, and cannot know the tap at the end
FALSE_ACCUSER = "false accuser"  # computes, then fails one node in ten whatever it did
COLLUDE = "collude"  # all of them pass everything with one agreed digest
ACCUSED = 10
TRUE_DIGEST = "true"
STRATEGIES = (HONEST, LAZY_PASS, LAZY_FAIL, COPY, ABSENT, TAP_GUESS, HALF, FALSE_ACCUSER)


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
    taps: bool = False
    tap_guess: float = 2.0**-32  # 32 coordinates with a bit of uncertainty each; really far more
    canary_share: float = 0.0  # q: of all audits
    canary_slash_bps: int = 500
    jackpot: float = 0.25  # J, fees, for each verifier that fails a canary
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
    jackpots: float
    slash_events_per_epoch: float


@dataclass(frozen=True)
class Report:
    """What one verifier says about one node, and with which digest (None = a digest of its own that nobody shares)."""

    verdict: Verdict
    digest: str | None


@dataclass(frozen=True)
class _Node:
    """What an audit of a node finds in one epoch."""

    audits: int
    truth: Verdict
    canary: bool


@dataclass
class _Account:
    audits: int = 0
    reward: float = 0.0
    cost: float = 0.0
    slashed: float = 0.0
    jackpots: float = 0.0
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


def deterring_canaries(game: Game) -> float:
    """Share q of the audits that must be canaries for passing unseen to earn less than honest work, without taps.

    From r + q J - c > (1 - q) r - q S: q = c / (r + J + S), S being what a passed canary costs.
    """
    return game.audit_cost / (game.reward + game.jackpot + game.seat_stake * game.canary_slash_bps / BPS)


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


def _epoch(game: Game, strategies: Sequence[str], accounts: Sequence[_Account], rng: np.random.Generator) -> None:
    rule, v = game.rule, len(strategies)
    nodes = [_node(game, rng) for _ in range(game.nodes)]
    size = min(rule.committee_size, v)
    drawn = [rng.choice(v, size, replace=False).tolist() for _ in nodes]
    reports: list[dict[int, Report]] = [{} for _ in nodes]
    for i, node in enumerate(nodes):
        if node.audits == 0:
            continue
        for member in drawn[i]:
            accounts[member].audits += node.audits
            accounts[member].cost += node.audits * game.audit_cost * _work(strategies[member])
            report = _report(game, strategies[member], node, i, rng)
            if report is not None:
                reports[i][member] = report
    _open_canaries(game, nodes, reports, accounts)
    finals = {str(i): com.final([r.verdict for r in reports[i].values()], size) for i in range(len(nodes))}
    digests = [_final_digest(reports[i], size) if game.taps else None for i in range(len(nodes))]
    points = [_judge(game, member, reports, finals, digests, drawn, accounts[member]) for member in range(v)]
    pool = game.nodes * game.jobs * game.phi_bps / BPS * game.verifiers_bps / BPS
    whole = sum(points)
    for account, earned in zip(accounts, points, strict=True):
        account.reward += pool * earned / whole if whole else 0.0


def _node(game: Game, rng: np.random.Generator) -> _Node:
    audits = int(rng.binomial(game.jobs, game.audit_rate))
    bad = audits > 0 and bool(rng.random() < game.failing)
    canary = audits > 0 and not bad and bool(rng.random() < game.canary_share * audits)
    failed = FULL_UNITS * audits if bad else 0
    passed = 0 if bad else FULL_UNITS * audits
    return _Node(audits, Verdict(min(passed, PASSED_CAP), min(failed, FAILED_CAP), bad), canary)


def _work(strategy: str) -> float:
    """Share of an audit that a strategy computes."""
    return {HONEST: 1.0, FALSE_ACCUSER: 1.0, HALF: 0.5}.get(strategy, 0.0)


def _report(game: Game, strategy: str, node: _Node, index: int, rng: np.random.Generator) -> Report | None:
    units = min(FULL_UNITS * node.audits, PASSED_CAP)
    passing = Verdict(units, 0, False)
    failing = Verdict(0, min(units, FAILED_CAP), True)
    seen = Verdict(max(units - FULL_UNITS, 0), FULL_UNITS, True) if node.canary else node.truth
    if strategy == TAP_GUESS:
        return Report(passing, TRUE_DIGEST if rng.random() < game.tap_guess else None)
    if strategy == FALSE_ACCUSER and index % ACCUSED == 0:
        return Report(failing, TRUE_DIGEST)
    reports = {
        HONEST: Report(seen, TRUE_DIGEST),
        FALSE_ACCUSER: Report(seen, TRUE_DIGEST),
        LAZY_PASS: Report(passing, None),
        HALF: Report(passing, None),
        LAZY_FAIL: Report(failing, None),
        COLLUDE: Report(passing, "agreed"),
    }
    return reports.get(strategy)


def _open_canaries(
    game: Game, nodes: Sequence[_Node], reports: list[dict[int, Report]], accounts: Sequence[_Account]
) -> None:
    """Pay and slash by the opened canaries, then take them out of the verdicts."""
    for node, said in zip(nodes, reports, strict=True):
        if not node.canary:
            continue
        for member, report in said.items():
            if report.verdict.failed:
                accounts[member].jackpots += game.jackpot
            else:
                accounts[member].slashed += game.seat_stake * game.canary_slash_bps / BPS
                accounts[member].slashes += 1
            failed = max(report.verdict.failed - FULL_UNITS, 0)
            cleared = Verdict(report.verdict.passed, failed, report.verdict.severe and failed > 0)
            said[member] = Report(cleared, report.digest)


def _final_digest(said: Mapping[int, Report], size: int) -> str | None:
    """The digest that a quorum shows, or None."""
    shown = [report.digest for report in said.values() if report.digest is not None]
    return next((d for d in sorted(set(shown)) if shown.count(d) >= com.quorum(size)), None)


def _judge(
    game: Game,
    member: int,
    reports: Sequence[Mapping[int, Report]],
    finals: Mapping[str, com.Final | None],
    digests: Sequence[str | None],
    drawn: Sequence[Sequence[int]],
    account: _Account,
) -> int:
    """Points of one verifier for the epoch; slashes go to its account."""
    own = {str(i): said[member].verdict for i, said in enumerate(reports) if member in said}
    if own:
        judgement = com.judge(own, finals, game.rule.deviation_bps)
        wrong = any(
            digest is not None and member in said and said[member].digest != digest
            for said, digest in zip(reports, digests, strict=True)
        )
        bps, points = judgement.slash_bps, judgement.points
        if wrong:
            bps, points = game.rule.deviation_bps, 0
    else:
        missed = any(member in drawn[i] and finals[str(i)] is not None for i in range(len(drawn)))
        bps, points = (game.rule.no_reveal_bps if missed else 0), 0
    account.slashed += game.seat_stake * bps / BPS
    account.slashes += bps > 0
    return points


def _payoff(name: str, strategies: Sequence[str], accounts: Sequence[_Account], epochs: int) -> Payoff:
    mine = [account for account, strategy in zip(accounts, strategies, strict=True) if strategy == name]
    audits = max(sum(account.audits for account in mine), 1)
    reward, cost, slashed, jackpots = (
        sum(getattr(account, part) for account in mine) / audits for part in ("reward", "cost", "slashed", "jackpots")
    )
    events = sum(account.slashes for account in mine) / (epochs * len(mine))
    return Payoff(reward + jackpots - cost - slashed, reward, cost, slashed, jackpots, events)

"""Random histories of a network, played by the compiled contracts and by the model, compared after every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.trust import committee as com
from bench.trust import rule as r
from bench.trust.evm import COMMIT, GENESIS, REVEAL, TALLY, Network, address_of
from deploy.profile import Profile
from efedllm.commitments.hashing import sha256
from efedllm.errors import ProtocolError
from verifier.sampling import FAILED_CAP, PASSED_CAP, Verdict

ETHER = 10**18
FIRST_EPOCH = 2  # seats taken in epoch 1 judge from here


class Counter:
    """Numbers from sha256(seed | n): the same on every machine."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._n = seed, 0

    def below(self, bound: int) -> int:
        """Uniform enough over 0 .. bound - 1 (a modulus of 256 bits)."""
        self._n += 1
        return int.from_bytes(sha256(self._seed + self._n.to_bytes(8))) % bound

    def one_in(self, n: int) -> bool:
        return self.below(n) == 0


@dataclass(frozen=True)
class World:
    """What the model knows: trust by node, stakes by operator, jail times in the vault, points of the last epoch."""

    trust: r.TrustState
    stakes: Mapping[str, com.Stake]
    jail: Mapping[str, int]  # unix seconds
    judged: int = 0  # the last epoch that was tallied; 0 = none
    points: Mapping[str, int] = field(default_factory=dict)  # earned in it


@dataclass(frozen=True)
class Epoch:
    """What happened in one epoch: the committees, what was revealed, who committed and stayed silent."""

    number: int
    drawn: Mapping[str, tuple[str, ...]]  # node -> committee
    revealed: Mapping[str, Mapping[str, com.Said]]  # verifier -> node -> verdict and tap
    silent: frozenset[str]


@dataclass
class Seen:
    """What a comparison met, so that a test can ask whether it covered the rule."""

    epochs: int = 0
    verdicts: int = 0
    no_quorum: int = 0
    gaps: int = 0
    excluded: int = 0
    reentered: int = 0
    probation: int = 0
    severe: int = 0
    gray: int = 0
    repeat_slashes: int = 0
    deviated: int = 0
    tap_agreed: int = 0
    tap_differs: int = 0
    missed: int = 0
    values_compared: int = 0


def finals_of(epoch: Epoch, nodes: Sequence[str]) -> dict[str, com.Final | None]:
    """The final verdict about every node, None without a quorum."""
    return {
        node: com.final(
            [epoch.revealed[v][node] for v in epoch.drawn[node] if node in epoch.revealed.get(v, {})],
            len(epoch.drawn[node]),
        )
        for node in nodes
    }


def missed_duties(epoch: Epoch, verifier: str, finals: Mapping[str, com.Final | None]) -> list[str]:
    """Nodes on which the others reached a quorum without this drawn verifier."""
    own = epoch.revealed.get(verifier, {})
    return [
        node
        for node, decided in finals.items()
        if decided is not None and verifier in epoch.drawn[node] and node not in own
    ]


def close(world: World, rule: r.Rule, epoch: Epoch, nodes: Sequence[str], clock: tuple[int, int]) -> World:
    """The tally of an epoch: finalize every node, then judge every verifier of a committee.

    `clock` is (genesis, epoch length) in seconds, for the vault's jail.
    """
    finals = finals_of(epoch, nodes)
    decided = [finals[node] or com.Final(0, 0, False) for node in nodes]
    verdicts = r.Verdicts(
        np.array([item.passed for item in decided], dtype=np.int64),
        np.array([item.failed for item in decided], dtype=np.int64),
        np.array([item.severe for item in decided], dtype=np.bool_),
        np.array([finals[node] is not None for node in nodes], dtype=np.bool_),
    )
    applied = r.apply(world.trust, rule, epoch.number, verdicts)
    stakes, jail = dict(world.stakes), dict(world.jail)
    genesis, length = clock
    for i, node in enumerate(nodes):
        if applied.slash_bps[i]:
            stakes[node], _ = com.slash(stakes[node], int(applied.slash_bps[i]))
            until = genesis + (int(applied.state.jailed_until[i]) - 1) * length
            jail[node] = max(jail.get(node, 0), until)
    points: dict[str, int] = {}
    for verifier in sorted({v for members in epoch.drawn.values() for v in members}):
        judgement = judge(epoch, verifier, finals, rule)
        if judgement is not None:
            points[verifier] = judgement.points
            stakes[verifier], _ = com.slash(stakes[verifier], judgement.slash_bps)
    return World(applied.state, stakes, jail, epoch.number, points)


def judge(epoch: Epoch, verifier: str, finals: Mapping[str, com.Final | None], rule: r.Rule) -> com.Judgement | None:
    """The judgement a caller of `judgeVerifier` gets through, or None where there is nothing to judge."""
    if verifier in epoch.revealed:
        return com.judge(epoch.revealed[verifier], finals, rule.deviation_bps)
    if verifier in epoch.silent or missed_duties(epoch, verifier, finals):
        return com.Judgement(com.NO_REVEAL, 0, rule.no_reveal_bps)
    return None


class Comparison:
    """One network in the EVM and its model. `run` plays epochs drawn from `seed` and raises at the first difference."""

    def __init__(self, profile: Profile, nodes: int, verifiers: int, seed: bytes) -> None:
        self._rule = r.Rule.of(profile)
        self._random = Counter(seed)
        self._net = Network(profile)
        self._clock = (GENESIS, profile.clock.epoch_length)
        self._verifiers = [address_of(f"verifier {i}") for i in range(verifiers)]
        # The last node is a verifier too, who must never be drawn for itself.
        self._nodes = [address_of(f"node {i}") for i in range(nodes - 1)] + [self._verifiers[-1]]
        self.seen = Seen()
        stakes: dict[str, com.Stake] = {}
        for i, who in enumerate(dict.fromkeys([*self._nodes, *self._verifiers])):
            # Odd amounts, so that every rounding shows.
            stakes[who] = com.Stake(self._rule.seat_stake + profile.registry.min_stake_per_layer + 7 * i + 3)
            self._net.stake(who, stakes[who].active)
        for node in self._nodes:
            self._net.register(node)
        for verifier in self._verifiers:
            self._net.take_seat(verifier)
        self._epoch = FIRST_EPOCH - 1
        self.world = World(r.fresh(nodes), stakes, {})

    def run(self, epochs: int) -> Seen:
        """Play `epochs` judged epochs. Raises ProtocolError "model-differs" naming what differs."""
        for _ in range(epochs):
            self._play()
        return self.seen

    def _play(self) -> None:
        random, rule = self._random, self._rule
        gap = 1 + (random.below(3 * rule.exclusion_epochs) if random.one_in(12) else 0)
        self.seen.gaps += gap > 1
        self._epoch += gap
        e = self._epoch
        self._net.move_to(e + 1, COMMIT)
        self._maybe_unbond()
        # A long silence shows in the views before any verdict does.
        self._compare(e + 1)
        seed = self._net.fix_seed(e)
        drawn = {node: com.draw(seed, node, self._verifiers, rule.committee_size) for node in self._nodes}
        for node in self._nodes:
            self._same(f"committee of {node}", self._net.drawn(e, node), drawn[node])
        epoch = self._events(e, drawn)
        outcomes = self._in_contract(epoch)
        before = self.world
        self.world = close(before, rule, epoch, self._nodes, self._clock)
        self._compare(e + 1)
        self._compare_judgements(epoch, outcomes)
        self._count(epoch, before)

    def _events(self, e: int, drawn: Mapping[str, tuple[str, ...]]) -> Epoch:
        """Verdicts of everybody: each node has a truth that most members report, and some members do not."""
        random = self._random
        truths = {node: self._truth() for node in self._nodes}
        taps = {node: self._tap() for node in self._nodes}
        revealed: dict[str, dict[str, com.Said]] = {}
        silent = set()
        quiet = random.one_in(8)
        for verifier in self._verifiers:
            action = random.below(3 if quiet else 15)
            if action == 0:
                continue
            duties = [n for n in self._nodes if verifier in drawn[n] and truths[n] is not None]
            own = {}
            for node in duties:
                truth = truths[node]
                if truth is None or random.one_in(25):
                    continue
                own[node] = self._said(truth, taps[node])
            if not own:
                continue
            if action == 1:
                silent.add(verifier)
            else:
                revealed[verifier] = own
        return Epoch(e, drawn, revealed, frozenset(silent))

    def _truth(self) -> Verdict | None:
        """Mostly passes, as in life; now and then a failure, gray or severe; now and then nothing to audit."""
        random = self._random
        kind = random.below(40)
        if kind < 5:
            return None
        if kind < 36:
            return Verdict(random.below(PASSED_CAP + 1 if random.one_in(3) else 60), 0, False)
        return Verdict(random.below(PASSED_CAP + 1), 1 + random.below(FAILED_CAP if random.one_in(4) else 6), kind < 38)

    def _noisy(self, truth: Verdict) -> Verdict:
        random = self._random
        if not random.one_in(20):
            return truth
        failed = random.below(FAILED_CAP + 1) if random.one_in(2) else truth.failed
        return Verdict(random.below(PASSED_CAP + 1), failed, failed != 0 and random.one_in(2))

    def _tap(self) -> int:
        """What the computation of a node shows; 0 where its model is a float one."""
        random = self._random
        return 0 if random.one_in(6) else 1 + random.below(2**32 - 1)

    def _said(self, truth: Verdict, tap: int) -> com.Said:
        """Mostly the truth: its tap beside a pass and none beside a failure."""
        random = self._random
        verdict = self._noisy(truth)
        honest = 0 if verdict.failed else tap
        odd = random.below(40)
        if odd == 0:
            return com.Said(verdict, random.below(2**32))
        # Nothing claimed, and a tap beside a failure, which must not count.
        return com.Said(verdict, 0 if odd == 1 else tap if odd == 2 else honest)

    def _maybe_unbond(self) -> None:
        random = self._random
        if not random.one_in(6):
            return
        who = sorted(self.world.stakes)[random.below(len(self.world.stakes))]
        stake = self.world.stakes[who]
        amount = random.below(stake.active // 3 + 1)
        if amount:
            self._net.unbond(who, amount)
            moved = com.Stake(stake.active - amount, stake.unbonding + amount)
            self.world = replace(self.world, stakes={**self.world.stakes, who: moved})

    def _in_contract(self, epoch: Epoch) -> dict[str, int]:
        """The epoch on chain; the outcome that the contract gave every verifier it judged."""
        net, e = self._net, epoch.number
        outcomes = {}
        attestations = {v: net.attestation(e, v, own) for v, own in epoch.revealed.items()}
        for verifier, attestation in attestations.items():
            net.commit(verifier, attestation)
        for verifier in epoch.silent:
            net.commit(verifier, net.attestation(e, verifier, {}))
        net.move_to(e + 1, REVEAL)
        for verifier, attestation in attestations.items():
            net.reveal(verifier, attestation)
        net.move_to(e + 1, TALLY)
        net.finalize(e, self._nodes)
        finals = finals_of(epoch, self._nodes)
        for verifier in sorted({v for members in epoch.drawn.values() for v in members}):
            if verifier in attestations:
                outcomes[verifier] = net.judge(e, verifier, attestations[verifier].nodes)
            elif verifier in epoch.silent:
                outcomes[verifier] = net.judge(e, verifier, [])
            elif missed := missed_duties(epoch, verifier, finals):
                outcomes[verifier] = net.judge(e, verifier, missed)
        return outcomes

    def _compare_judgements(self, epoch: Epoch, outcomes: Mapping[str, int]) -> None:
        """Final taps, and what each judgement found."""
        finals = finals_of(epoch, self._nodes)
        for node, decided in finals.items():
            tap = self._net.agreed_tap(epoch.number, node)
            self._same(f"tap of {node}", tap, decided.tap if decided is not None else 0)
            self.seen.tap_agreed += tap != 0
        for verifier, outcome in outcomes.items():
            judgement = judge(epoch, verifier, finals, self._rule)
            self._same(f"outcome of {verifier}", outcome, None if judgement is None else judgement.outcome)

    def _compare(self, current: int) -> None:
        net, state = self._net, self.world.trust
        scores = r.trust(state, self._rule, current)
        standings = r.standing(state, self._rule, current, scores)
        rates = r.audit_rate(scores, self._rule)
        for i, node in enumerate(self._nodes):
            columns = (state.alpha, state.beta, state.epoch, state.offences, state.jailed_until)
            self._same(f"state of {node}", net.trust_state(node), tuple(int(column[i]) for column in columns))
            self._same(f"trust of {node}", net.trust(node), int(scores[i]))
            self._same(f"standing of {node}", net.standing(node), int(standings[i]))
            self._same(f"audit rate of {node}", net.audit_rate(node), int(rates[i]))
            self._same(f"jail of {node}", net.jailed_until(node), self.world.jail.get(node, 0))
        for who, stake in self.world.stakes.items():
            self._same(f"stake of {who}", net.stake_of(who), (stake.active, stake.unbonding))
        for verifier in self._verifiers if self.world.judged else ():
            points = net.points(self.world.judged, verifier)
            self._same(f"points of {verifier}", points, self.world.points.get(verifier, 0))

    def _same(self, what: str, contract: object, model: object) -> None:
        self.seen.values_compared += 1
        if contract != model:
            raise ProtocolError(
                "model-differs",
                f"Epoch {self._epoch}: the {what} is {contract} in the contract and {model} in the model.",
                "Bring bench/trust in line with contracts/, then compare again.",
            )

    def _count(self, epoch: Epoch, before: World) -> None:
        seen, rule, current = self.seen, self._rule, epoch.number + 1
        finals = finals_of(epoch, self._nodes)
        seen.epochs += 1
        for i, node in enumerate(self._nodes):
            decided = finals[node]
            seen.verdicts += decided is not None
            seen.no_quorum += decided is None
            if decided is not None and decided.failed:
                seen.severe += decided.severe
                seen.gray += not decided.severe
                seen.repeat_slashes += decided.severe and int(before.trust.offences[i]) > 0
            seen.reentered += bool(before.trust.jailed_until[i] != 0 and self.world.trust.jailed_until[i] == 0)
        standings = r.standing(self.world.trust, rule, current)
        seen.excluded += int((standings == r.EXCLUDED).sum())
        seen.probation += int((standings == r.PROBATION).sum())
        for verifier in self._verifiers:
            judgement = judge(epoch, verifier, finals, rule)
            if judgement is not None:
                seen.deviated += judgement.outcome == com.DEVIATED
                seen.tap_differs += judgement.outcome == com.TAP_DIFFERS
                seen.missed += judgement.outcome == com.NO_REVEAL

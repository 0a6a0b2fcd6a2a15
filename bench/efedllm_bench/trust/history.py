"""Random histories of a network, played by the compiled contracts and by the model, compared after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from efedllm.commitments.hashing import sha256
from efedllm.errors import ProtocolError
from efedllm_bench.trust import committee as com
from efedllm_bench.trust import rule as r
from efedllm_bench.trust.evm import COMMIT, GENESIS, REVEAL, TALLY, Network, address_of
from efedllm_bench.trust.model import Epoch, World, close, finals_of, judge, missed_duties
from efedllm_deploy.profile import Profile
from efedllm_verifier.verdict import FAILED_CAP, PASSED_CAP, Verdict

ETHER = 10**18
FIRST_EPOCH = 2  # seats taken in epoch 1 judge from here
LAYERS = 4


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
class Work:
    """What an audit of a node finds: the verdict, and the fingerprint of its taps."""

    verdict: Verdict
    tap: int


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
            self._net.register(node, LAYERS)
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
        self._net.move_to(e, COMMIT)
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
        """Verdicts of all verifiers: each node has a truth that most members report, and some members do not."""
        random = self._random
        works = {node: self._work() for node in self._nodes}
        # Members pass these nodes without a look, two in three of them.
        unseen = {node: random.one_in(12) for node in self._nodes}
        revealed: dict[str, dict[str, com.Said]] = {}
        silent = set()
        quiet = random.one_in(8)
        for verifier in self._verifiers:
            action = random.below(3 if quiet else 15)
            if action == 0:
                continue
            duties = [n for n in self._nodes if verifier in drawn[n]]
            own = {}
            for node in duties:
                work = works[node]
                if work is None or random.one_in(25):
                    continue
                own[node] = self._said(work, unseen[node] and not random.one_in(3))
            if not own:
                continue
            if action == 1:
                silent.add(verifier)
            else:
                revealed[verifier] = own
        return Epoch(e, drawn, revealed, frozenset(silent))

    def _work(self) -> Work | None:
        """None where there is nothing to audit."""
        truth = self._truth()
        return None if truth is None else Work(truth, self._tap())

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

    def _said(self, work: Work, lazy: bool) -> com.Said:
        """Mostly the truth, with its taps beside a pass. `lazy`: passes without computing."""
        random = self._random
        if lazy:
            return com.Said(Verdict(work.verdict.passed, 0, False))
        verdict = self._noisy(work.verdict)
        odd = random.below(40)
        if odd == 0:
            return com.Said(verdict, random.below(2**32))
        if odd == 1:
            return com.Said(verdict, 0)
        # A tap beside a failure must not count, so half of the failures name one.
        return com.Said(verdict, work.tap if not verdict.failed or random.one_in(2) else 0)

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

"""One epoch of the network in the model: who is judged how, and what the tally does to trust, stakes and points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from efedllm_bench.trust import committee as com
from efedllm_bench.trust import rule as r


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

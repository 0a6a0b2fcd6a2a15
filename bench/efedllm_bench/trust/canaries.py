"""How many canaries it takes, and what they cost whoever plants them: formulas beside the game of dilemma.py.

One lazy verifier among honest ones; nobody cheats; models without taps. Money is in fees of one hop-job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from efedllm_bench.trust.dilemma import Game
from efedllm_bench.trust.rule import BPS

# Whole transactions, as tests/contracts measures them.
OPEN_GAS = 120_700
OPEN_GAS_MORE = 40_800  # every further leaf of the same call


@dataclass(frozen=True)
class Planting:
    """What a node's operator pays for canaries, per epoch and on average."""

    fees: float
    of_income: float  # of what the node earns in fees
    openings: float  # calls
    gas: float


def caught(game: Game, verifiers: int) -> tuple[float, float]:
    """(probability that an epoch of one verifier holds an audited canary, expected audits in epochs without one).

    By the generating function of its audits: it is drawn for each node with the same chance, independently, and each
    job of a node is audited, and is a canary, independently.
    """
    drawn = min(game.rule.committee_size, verifiers) / verifiers
    rate, z = game.audit_rate, 1.0 - game.canaries
    clean = (1.0 - rate + rate * z) ** game.jobs
    node = 1.0 - drawn + drawn * clean
    whole = node**game.nodes
    slope = (
        game.nodes * node ** (game.nodes - 1) * drawn * game.jobs * rate * (1.0 - rate + rate * z) ** (game.jobs - 1)
    )
    return 1.0 - whole, z * slope


def audits(game: Game, verifiers: int) -> float:
    """Audits that one verifier is drawn for in an epoch."""
    return game.nodes * min(game.rule.committee_size, verifiers) / verifiers * game.jobs * game.audit_rate


def lazy_utility(game: Game, verifiers: int, slash_bps: int) -> float:
    """Per audit, of one verifier that passes everything unseen: the reward of epochs without an audited canary, less
    `slash_bps` of its stake in every other.
    """
    hit, unharmed = caught(game, verifiers)
    return (game.reward * unharmed - hit * game.seat_stake * slash_bps / BPS) / audits(game, verifiers)


def deterring(game: Game, verifiers: int, slash_bps: int) -> float:
    """Share of the jobs that must be canaries for passing unseen to earn no more than honest work."""
    return _least_share(lambda share: _at(game, share, verifiers, slash_bps) <= game.reward - game.audit_cost)


def ruinous(game: Game, verifiers: int, slash_bps: int) -> float:
    """Share of the jobs that must be canaries for passing unseen to earn nothing."""
    return _least_share(lambda share: _at(game, share, verifiers, slash_bps) <= 0.0)


def planting(game: Game, hops: int, hop_cost: float, fee_bps: int) -> Planting:
    """The cost of planting `game.canaries` of one node's jobs, over routes of `hops` equal hops.

    The operator pays every hop its fee and gets his own node's back, less the protocol's; his node computes.
    """
    planted = game.jobs * game.canaries
    own = 1.0 - fee_bps / BPS
    price = hops - own + hop_cost
    audited = planted * game.audit_rate
    openings = 1.0 - (1.0 - game.audit_rate * game.canaries) ** game.jobs
    gas = openings * OPEN_GAS + (audited - openings) * OPEN_GAS_MORE
    return Planting(planted * price, planted * price / (game.jobs * own), openings, gas)


def _at(game: Game, share: float, verifiers: int, slash_bps: int) -> float:
    return lazy_utility(replace(game, canaries=share), verifiers, slash_bps)


def _least_share(enough: Callable[[float], bool]) -> float:
    """The smallest share for which `enough` holds, by bisection: more canaries never help the lazy."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high

"""Sends a small share of the jobs through nodes without trust, so that newcomers can earn it.

By cost alone they would get no work, hence no audits and no trust. Pure functions: the same jobs of the same client
give the same choices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from efedllm.commitments.hashing import address_bytes, keccak
from efedllm.errors import ConfigError
from efedllm_client.routes.choose import (
    Candidate,
    CostWeights,
    Route,
    cheapest_per_layer,
    cheapest_route,
    hop_cost,
    usable_nodes,
)

DOMAIN = b"EFL.explore.1"
PPM = 1_000_000
TRUST_GAP = 200_000  # ppm of trust below the most trusted node of one of its layers: a newcomer
PRICE_LIMIT_PERCENT = 125  # a route that tries a newcomer may charge this much of what the best one charges


@dataclass(frozen=True)
class Lot:
    """Two uint64 drawn for one job."""

    chance: int  # whether the job tries a newcomer
    pick: int  # which one


def draw_lot(client: str, jobs: int) -> Lot:
    """The lot of a client's job that has `jobs` before it: keccak256(DOMAIN | client | u64 jobs), first 16 bytes."""
    digest = keccak(DOMAIN + address_bytes(client) + jobs.to_bytes(8, "big"))
    return Lot(int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"))


def check_share(share: float) -> float:
    """`share` if it is between 0 and 1, else ConfigError "bad-option"."""
    if not 0.0 <= share <= 1.0:
        raise ConfigError("bad-option", "--explore must be between 0 (never) and 1 (every job).", "See --help.")
    return share


def tries_newcomer(lot: Lot, share: float) -> bool:
    """Whether a job with this lot belongs to the share of jobs that try a newcomer."""
    return lot.chance * PPM < round(share * PPM) << 64


def newcomers(candidates: Sequence[Candidate], layers: int, avoid: Collection[str] = ()) -> list[Candidate]:
    """Usable nodes with TRUST_GAP less trust than another one that serves one of their layers, by address."""
    usable = usable_nodes(candidates, layers, avoid)
    known = [0] * layers
    for node in usable:
        for layer in range(node.lo, node.hi):
            known[layer] = max(known[layer], node.trust_ppm)
    new = [node for node in usable if max(known[node.lo : node.hi]) - node.trust_ppm >= TRUST_GAP]
    return sorted(new, key=lambda node: node.address)


def explored_route(
    candidates: Sequence[Candidate],
    layers: int,
    best: Route,
    lot: Lot,
    avoid: Collection[str] = (),
    max_price: int | None = None,
    weights: CostWeights | None = None,
) -> Route | None:
    """The cheapest acceptable route through a newcomer that `lot` picks, or None when there is none.

    Acceptable: a price of at most PRICE_LIMIT_PERCENT of the price of `best`, and of at most `max_price` gwei per 1000
    tokens. Without its distrust term the cost may exceed that of `best` by at most the cost of full distrust: this
    excludes nodes that are far away.
    """
    weights = weights or CostWeights()
    usable = usable_nodes(candidates, layers, avoid)
    reference, plain = cheapest_per_layer(usable), replace(weights, distrust=0.0)
    routes = []
    for node in newcomers(candidates, layers, avoid):
        before = cheapest_route(usable, reference, weights, 0, node.lo)
        after = cheapest_route(usable, reference, weights, node.hi, layers)
        if node.address in best.addresses or before is None or after is None:
            continue
        hops = (*before.hops, node, *after.hops)
        cost = sum(hop_cost(hop, reference, weights) for hop in hops)
        route = Route(hops, cost, newcomer=node.address)
        acceptable = sum(hop_cost(hop, reference, plain) for hop in hops) <= best.cost + weights.distrust
        affordable = max_price is None or route.price <= max_price
        if acceptable and affordable and route.price * 100 <= best.price * PRICE_LIMIT_PERCENT:
            routes.append(route)
    return routes[lot.pick % len(routes)] if routes else None

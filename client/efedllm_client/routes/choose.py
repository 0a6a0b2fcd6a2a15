"""Choosing a route: a contiguous cover of a model's layers by nodes, cheapest by a documented cost. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from efedllm.chain.amounts import GWEI, format_amount
from efedllm.errors import ConfigError

STANDING_EXCLUDED = 0
STATUS_ACTIVE = 1


@dataclass(frozen=True)
class Candidate:
    """One node as registered on chain, with the result of a probe."""

    address: str  # EIP-55
    signer: str  # EIP-55, hot key of the node
    endpoint: str  # http(s) base URL
    lo: int  # first layer
    hi: int  # one past the last layer
    price: int  # gwei of EFED per 1000 tokens, for the whole range
    trust_ppm: int  # 0 .. 1_000_000
    standing: int  # 0 excluded, 1 probation, 2 active
    status: int = STATUS_ACTIVE  # 1 active, 2 paused, 3 retired
    latency_ms: float | None = None  # round trip of the probe; None = it did not answer
    queue: int = 0  # jobs the node says it is running or holding
    shard_root: bytes = b""
    problem: str = ""  # why the probe failed, for messages

    @property
    def usable(self) -> bool:
        return self.latency_ms is not None and self.status == STATUS_ACTIVE and self.standing != STANDING_EXCLUDED


@dataclass(frozen=True)
class CostWeights:
    """Weights of the cost terms, in milliseconds per token. The cost of a node in a route is:

    latency + hop + price_per_layer * (price / cheapest price per layer) + distrust * (1 - trust) + queue * jobs
    Latencies count in whole steps: measurements on one machine or in one building differ by noise only.
    """

    latency_step: float = 5.0
    hop: float = 4.0  # framing, signing and scheduling that every further hop adds
    price_per_layer: float = 1.0  # paid per layer at the cheapest price on offer; a node at twice that price pays twice
    distrust: float = 50.0  # a node of trust 0 costs as much as 50 ms
    queue: float = 2.0  # each job that shares the node's batches


@dataclass(frozen=True)
class Route:
    """Nodes in layer order; `hops[i].hi == hops[i + 1].lo`."""

    hops: tuple[Candidate, ...]
    cost: float = field(compare=False, default=0.0)
    newcomer: str = field(compare=False, default="")  # the node that the route tries, see `newcomers`

    @property
    def price(self) -> int:
        """Gwei of EFED per 1000 tokens for the whole route."""
        return sum(hop.price for hop in self.hops)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(hop.address for hop in self.hops)


def cheapest_per_layer(candidates: Sequence[Candidate]) -> float:
    """Lowest positive price per layer on offer, or 1.0 when everything is free."""
    prices = [c.price / (c.hi - c.lo) for c in candidates if c.price > 0 and c.hi > c.lo]
    return min(prices, default=1.0)


def hop_cost(candidate: Candidate, reference_price: float, weights: CostWeights) -> float:
    """Cost of one node in a route; positive, so that shortest paths are well defined."""
    if candidate.latency_ms is None:
        raise ValueError(f"{candidate.address} has no latency")
    return (
        math.ceil(candidate.latency_ms / weights.latency_step) * weights.latency_step
        + weights.hop
        + weights.price_per_layer * candidate.price / reference_price
        + weights.distrust * (1_000_000 - candidate.trust_ppm) / 1_000_000
        + weights.queue * candidate.queue
    )


def choose_route(
    candidates: Sequence[Candidate],
    layers: int,
    avoid: Collection[str] = (),
    weights: CostWeights | None = None,
) -> Route:
    """Dijkstra over layer boundaries: edges are nodes from `lo` to `hi`, the goal is `layers`.

    Ties go to fewer hops, then to the lower addresses, so that equal inputs give equal routes.
    Raises ConfigError "layers-not-covered" naming the layers that no usable node serves.
    """
    weights = weights or CostWeights()
    usable = usable_nodes(candidates, layers, avoid)
    route = cheapest_route(usable, cheapest_per_layer(usable), weights, 0, layers)
    if route is None:
        raise _not_covered(candidates, usable, layers, {address.lower() for address in avoid})
    return route


def usable_nodes(candidates: Sequence[Candidate], layers: int, avoid: Collection[str] = ()) -> list[Candidate]:
    """The candidates that may work on a route over `layers` layers."""
    avoided = {address.lower() for address in avoid}
    return [c for c in candidates if c.usable and c.address.lower() not in avoided and 0 <= c.lo < c.hi <= layers]


def cheapest_route(
    usable: Sequence[Candidate], reference_price: float, weights: CostWeights, start: int, end: int
) -> Route | None:
    """The cheapest nodes from layer `start` to one past the last layer `end`; None where there is no chain of them."""
    by_start: dict[int, list[Candidate]] = {}
    for candidate in usable:
        by_start.setdefault(candidate.lo, []).append(candidate)
    # Entries order by (cost, hops, addresses): the addresses also make the order total.
    queue: list[tuple[float, int, tuple[str, ...], int]] = [(0.0, 0, (), start)]
    by_address = {c.address: c for c in usable}
    done: set[int] = set()
    while queue:
        cost, hops, addresses, at = heapq.heappop(queue)
        if at == end:
            return Route(tuple(by_address[a] for a in addresses), cost)
        if at in done:
            continue
        done.add(at)
        for candidate in by_start.get(at, ()):
            if candidate.hi not in done and candidate.hi <= end:
                step = hop_cost(candidate, reference_price, weights)
                heapq.heappush(queue, (cost + step, hops + 1, (*addresses, candidate.address), candidate.hi))
    return None


STICKINESS = 1.25  # a route with an open session may cost this much more than the best: it saves a transaction


def choose_known_route(
    candidates: Sequence[Candidate],
    layers: int,
    known: Sequence[Sequence[str]],
    avoid: Collection[str] = (),
    weights: CostWeights | None = None,
) -> Route:
    """`choose_route`, but the cheapest of the `known` routes (node addresses) when it costs at most STICKINESS as much.

    Raises as `choose_route`.
    """
    weights = weights or CostWeights()
    best = choose_route(candidates, layers, avoid, weights)
    avoided = {address.lower() for address in avoid}
    usable = {c.address: c for c in candidates if c.usable and c.address.lower() not in avoided}
    reference = cheapest_per_layer([c for c in usable.values() if c.hi <= layers])
    routes = []
    for addresses in known:
        hops = tuple(usable[address] for address in addresses if address in usable)
        ends = [0, *(hop.hi for hop in hops)]
        if len(hops) == len(addresses) and [hop.lo for hop in hops] == ends[:-1] and ends[-1] == layers:
            routes.append(Route(hops, sum(hop_cost(hop, reference, weights) for hop in hops)))
    fitting = [route for route in routes if route.cost <= best.cost * STICKINESS]
    return min(fitting, key=lambda route: route.cost, default=best)


def named_route(candidates: Sequence[Candidate], layers: int, names: Sequence[str]) -> Route:
    """The route a person asked for with `--route`: addresses (or unique prefixes of them) in layer order.

    Raises ConfigError "unknown-node", "route-gap" or "node-unreachable".
    """
    hops = [find_candidate(candidates, name) for name in names]
    at = 0
    for hop in hops:
        if hop.lo != at:
            raise ConfigError(
                "route-gap",
                f"The route has a gap: {hop.address} serves layers {hop.lo}..{hop.hi - 1}, layer {at} comes next.",
                "Give the nodes in layer order, each starting where the one before ends; see `efedllm network`.",
            )
        at = hop.hi
    if at != layers:
        raise ConfigError(
            "route-gap",
            f"The route ends at layer {at} of {layers}.",
            "Add nodes for the remaining layers; see `efedllm network`.",
        )
    for hop in hops:
        if hop.standing == STANDING_EXCLUDED or hop.status != STATUS_ACTIVE:
            raise ConfigError(
                "node-excluded",
                f"{hop.address} is not accepting work (paused, retired or excluded by the verifiers).",
                "Choose another node; see `efedllm network`.",
            )
        if hop.latency_ms is None:
            raise unreachable(hop)
    return Route(tuple(hops))


def check_price(route: Route, max_price: int | None) -> Route:
    """`route`, unless it costs more than `max_price` gwei per 1000 tokens: ConfigError "too-expensive"."""
    if max_price is not None and route.price > max_price:
        price, limit = (format_amount(amount * GWEI) for amount in (route.price, max_price))
        raise ConfigError(
            "too-expensive",
            f"The best route costs {price} per 1000 tokens, more than {limit}.",
            "Raise --max-price, or see `efedllm network` for cheaper nodes.",
        )
    return route


def find_candidate(candidates: Sequence[Candidate], name: str) -> Candidate:
    """The one candidate whose address is `name` or starts with it (any case). Raises ConfigError "unknown-node"."""
    wanted = name.strip().lower()
    matches = [c for c in candidates if len(wanted) >= 4 and c.address.lower().startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    what = f"{name!r} matches {len(matches)} nodes." if matches else f"No node of this model is called {name!r}."
    raise ConfigError("unknown-node", what, "Give its address as `efedllm network` shows it.")


def resolve_names(candidates: Sequence[Candidate], names: Sequence[str]) -> tuple[str, ...]:
    """Addresses of the nodes called `names`."""
    return tuple(find_candidate(candidates, name).address for name in names)


def unreachable(candidate: Candidate) -> ConfigError:
    return ConfigError(
        "node-unreachable",
        f"Node {candidate.address} at {candidate.endpoint} does not answer: {candidate.problem or 'no reply'}.",
        "Leave it out with --avoid, or try again later.",
    )


def _not_covered(
    candidates: Sequence[Candidate], usable: Sequence[Candidate], layers: int, avoided: set[str]
) -> ConfigError:
    missing = uncovered(usable, layers)
    unusable = [c for c in candidates if not c.usable and c.address.lower() not in avoided]
    why = [f"{len(unusable)} registered nodes are unreachable, paused or excluded"] if unusable else []
    why += [f"{len(avoided)} avoided"] if avoided else []
    detail = f" ({', '.join(why)})" if why else ""
    if missing:
        spans = ", ".join(f"{lo}" if hi == lo + 1 else f"{lo}..{hi - 1}" for lo, hi in missing)
        message = f"No usable node serves layers {spans} of {layers}{detail}."
    else:
        message = f"Every layer of {layers} is served, but no chain of nodes meets end to end{detail}."
    return ConfigError("layers-not-covered", message, "`efedllm network` shows who serves what.")


def uncovered(candidates: Sequence[Candidate], layers: int) -> list[tuple[int, int]]:
    """Maximal spans [lo, hi) of layers that no candidate serves."""
    served = [False] * layers
    for candidate in candidates:
        for layer in range(max(candidate.lo, 0), min(candidate.hi, layers)):
            served[layer] = True
    spans: list[tuple[int, int]] = []
    for layer, is_served in enumerate(served):
        if is_served:
            continue
        if spans and spans[-1][1] == layer:
            spans[-1] = (spans[-1][0], layer + 1)
        else:
            spans.append((layer, layer + 1))
    return spans

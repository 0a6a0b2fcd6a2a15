"""How a session's payments are split between the nodes of its route."""

from __future__ import annotations

from collections.abc import Sequence

BPS = 10_000


def split_shares(hops: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Basis points for each hop, given (price, layers): by price, by layers on a free route; they sum to 10000.

    Largest remainders get the units that rounding down leaves, the first hop on ties.
    """
    weights = [price for price, _ in hops]
    if not any(weights):
        weights = [layers for _, layers in hops]
    total = sum(weights)
    shares = [weight * BPS // total for weight in weights]
    by_remainder = sorted(range(len(hops)), key=lambda i: (-(weights[i] * BPS % total), i))
    for index in by_remainder[: BPS - sum(shares)]:
        shares[index] += 1
    return tuple(shares)

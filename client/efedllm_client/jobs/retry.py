"""Retry rules: what a failure says about the nodes of a route and about its session. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from efedllm.chain.reverts import RevertError
from efedllm.errors import ChainError


def nodes_to_avoid(route: Iterable[str], dead: Collection[str], accused: Collection[str]) -> frozenset[str]:
    """Nodes of a failed route that the next one leaves out: the dead ones, else the accused ones, else all."""
    nodes = list(route)
    for group in (dead, accused):
        chosen = frozenset(node for node in nodes if node in group)
        if chosen:
            return chosen
    return frozenset(nodes)


def accused_by(message: str, reporter: str, route: Iterable[str]) -> frozenset[str]:
    """The nodes that a complaint accuses: the other nodes of the route that it names, else the reporter."""
    named = frozenset(node for node in route if node != reporter and node.lower() in message.lower())
    return named or frozenset({reporter})


# Errors of a session, not of a node: the same route may work with another session.
_SESSION_ERRORS = frozenset(
    {
        "deposit-exhausted",
        "job-exists",
        "payment-required",
        "price-too-low",
        "session-expired",
        "session-not-open",
        "session-too-old",
        "voucher-exceeds-deposit",
        "voucher-not-monotone",
        "wrong-session",
    }
)


def needs_fresh_session(code: str) -> bool:
    """Whether an error is cured by a new session rather than by another route."""
    return code in _SESSION_ERRORS


_ROUTE_REVERTS = frozenset(
    {
        "NodeNotActive",
        "NodeJailed",
        "NodeExcluded",
        "ProbationCapExceeded",
        "RouteGap",
        "RouteIncomplete",
        "StakeTooLow",
        "WrongModel",
    }
)


def is_route_error(error: ChainError) -> bool:
    """Whether a contract refused a node of the route, so that another route may be accepted."""
    return isinstance(error, RevertError) and error.name in _ROUTE_REVERTS

"""Fail-over: attempt a piece of work on one route, and on another one when the route fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from efedllm.errors import ChainError, ConfigError, EfedError
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.job import RouteFailure
from efedllm_client.jobs.retry import is_route_error, needs_fresh_session, nodes_to_avoid
from efedllm_client.jobs.route_chooser import RouteChooser
from efedllm_client.routes.choose import Route
from efedllm_client.routes.discovery import find_candidates

Event = TypeVar("Event")
Event_co = TypeVar("Event_co", covariant=True)


@dataclass(frozen=True)
class RouteSwitched:
    """The route failed after `results` results in all. The next route leaves out the nodes `avoided`."""

    error: EfedError
    avoided: tuple[str, ...]
    results: int


class RoutedWork(Protocol[Event_co]):
    """Work that may need several routes, e.g. a generation."""

    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        ...

    def results(self) -> int:
        """How many tokens, or texts, are done."""
        ...

    def tokens_left(self) -> int:
        """The most tokens that a session for the rest is billed for."""
        ...

    def attempt(self, route: Route, fresh: bool) -> AsyncGenerator[Event_co]:
        """Do the rest on `route`, in a new session if `fresh`.

        Raises RouteFailure, ChainError or ConfigError when it ends before the work is complete.
        """
        ...


async def run_with_failover(
    work: RoutedWork[Event], chooser: RouteChooser, context: JobContext, fresh: bool
) -> AsyncGenerator[Event | RouteSwitched]:
    """The events of all attempts, with RouteSwitched between them. `fresh`: open a new session for the first one.

    Raises EfedError when no route is left or the retries are used up.
    """
    avoid: set[str] = set()
    failures = 0
    while not work.is_complete():
        route = await chooser.choose(avoid, work.tokens_left())
        try:
            async with aclosing(work.attempt(route, fresh)) as attempt:
                async for event in attempt:
                    yield event
        except (RouteFailure, ChainError, ConfigError) as failure:
            error = failure.error if isinstance(failure, RouteFailure) else failure
            if route.newcomer:
                # Not counted as a retry; and the best route may need no new session, money or gas.
                dead = failure.dead if isinstance(failure, RouteFailure) else frozenset()
                left_out = dead | {route.newcomer}
            elif isinstance(failure, ConfigError) or (isinstance(failure, ChainError) and not is_route_error(failure)):
                raise
            else:
                failures += 1
                if failures > context.config.retries:
                    raise error from failure
                if needs_fresh_session(error.code) and not fresh:
                    fresh, left_out = True, frozenset[str]()
                else:
                    left_out = await _nodes_to_blame(context, route, failure)
            avoid |= left_out
            yield RouteSwitched(error, tuple(sorted(left_out)), work.results())


async def _nodes_to_blame(context: JobContext, route: Route, failure: RouteFailure | ChainError) -> frozenset[str]:
    """The nodes of a failed route that the next one leaves out. Those that do not answer now come first."""
    if isinstance(failure, ChainError):
        named = {address for address in route.addresses if address.lower() in failure.message.lower()}
        return nodes_to_avoid(route.addresses, (), named)
    now = {c.address: c for c in await find_candidates(context.chain, context.model, context.config.probe_seconds)}
    silent = {a for a in route.addresses if a not in now or now[a].latency_ms is None}
    return nodes_to_avoid(route.addresses, failure.dead | silent, failure.accused)

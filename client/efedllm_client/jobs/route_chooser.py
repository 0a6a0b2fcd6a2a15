"""Choosing the route of an attempt: the one asked for, one with an open session, a newcomer's, or the cheapest."""

from __future__ import annotations

from collections.abc import Collection

from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.options import RouteOptions
from efedllm_client.routes.choose import Candidate, Route, check_price, choose_known_route, named_route, resolve_names
from efedllm_client.routes.discovery import find_candidates
from efedllm_client.routes.newcomers import check_share, draw_lot, explored_route, tries_newcomer


class RouteChooser:
    """Chooses one route after another for one request."""

    def __init__(self, context: JobContext, options: RouteOptions, candidates: list[Candidate] | None = None) -> None:
        """`candidates`: nodes probed a moment ago, for the first choice. Raises ConfigError "bad-option"."""
        self._context = context
        self._options = options
        self._candidates = candidates
        self._first = True
        self._explore = check_share(context.config.explore_share if options.explore is None else options.explore)

    async def choose(self, avoid: Collection[str], tokens: int) -> Route:
        """The route of the next attempt, without the nodes `avoid`, for a job of at most `tokens` tokens.

        A route asked for by name, and one that tries a newcomer, are only the first choice. Raises ConfigError.
        """
        first, self._first = self._first, False
        candidates = self._candidates if first else None
        if candidates is None:
            context = self._context
            candidates = await find_candidates(context.chain, context.model, context.config.probe_seconds)
        if first and self._options.nodes:
            route = named_route(candidates, self._context.model.layers, self._options.nodes)
        else:
            route = await self._cheapest(candidates, avoid, tokens, explore=first)
        return check_price(route, self._options.max_price)

    async def _cheapest(
        self, candidates: list[Candidate], avoid: Collection[str], tokens: int, *, explore: bool
    ) -> Route:
        context = self._context
        unwanted = {*avoid, *resolve_names(candidates, self._options.avoid)}
        fresh = self._options.fresh_session
        known = [] if fresh else await context.sessions.open_routes(context.model.model_id)
        best = choose_known_route(candidates, context.model.layers, known, unwanted)
        newcomers = await self._through_newcomer(candidates, unwanted, best, tokens) if explore else None
        return newcomers or best

    async def _through_newcomer(
        self, candidates: list[Candidate], unwanted: Collection[str], best: Route, tokens: int
    ) -> Route | None:
        """A route through a newcomer, if this job's lot says so and the contracts accept a session that covers it."""
        sessions, model = self._context.sessions, self._context.model
        lot = draw_lot(sessions.client, await sessions.jobs_started())
        if not tries_newcomer(lot, self._explore):
            return None
        route = explored_route(candidates, model.layers, best, lot, unwanted, self._options.max_price)
        if route is None or not await sessions.may_open(route.addresses, model.model_id, tokens):
            return None
        return route

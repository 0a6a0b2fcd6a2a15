"""What the jobs of one wallet on one model share, and how their sessions and orders are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efedllm.chain import Chain
from efedllm.chain.types import ModelInfo
from efedllm.commitments.messages import RouteHop
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.job import JobOrder
from efedllm_client.jobs.options import Sampling
from efedllm_client.payments.session import PaidHop, PaidSession, SessionRequest, Sessions
from efedllm_client.routes.choose import Route


@dataclass(frozen=True)
class JobContext:
    """What the jobs of one wallet on one model share."""

    chain: Chain
    sessions: Sessions
    home: Path
    model: ModelInfo
    config: ClientConfig

    def request(self, route: Route, tokens: int, deposit: int | None, fresh: bool) -> SessionRequest:
        """A session on `route` for a job of at most `tokens` tokens. `deposit`: wei, None for the default."""
        return SessionRequest(
            model_id=self.model.model_id,
            hops=tuple(PaidHop(hop.address, hop.price, hop.hi - hop.lo) for hop in route.hops),
            tokens=tokens,
            deposit=deposit,
            fresh=fresh,
            # A route through a newcomer is unlikely to be chosen for the next jobs.
            jobs_ahead=1 if route.newcomer else self.config.jobs_ahead,
        )

    async def order(
        self, session: PaidSession, sampling: Sampling, prompt: Sequence[int], new_tokens: int, route: Route
    ) -> JobOrder:
        """The next job of an open session. Raises ConfigError "deposit-exhausted" when the prompt is not covered."""
        terms = session.terms(len(prompt), new_tokens, self.config)
        spec = sampling.spec(session.session_id, await session.take_job(), list(prompt), new_tokens)
        return JobOrder(session, spec, tuple(prompt), _hops(route), self.chain.efl_domain, terms, self.config)


def _hops(route: Route) -> tuple[RouteHop, ...]:
    return tuple(RouteHop(c.address, c.signer, c.endpoint, c.lo, c.hi, c.shard_root or None) for c in route.hops)

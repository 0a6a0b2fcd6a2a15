"""Planting canaries: ordinary paid jobs over a route through one node, which is asked to answer them wrongly.

The node's operator does this with a wallet that the node knows (`efedllm node run --canary-client`). Everything but
the consent is a generation like any other, so that no verifier can tell the job from one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any

from efedllm.commitments.canary import Canary
from efedllm.commitments.messages import JobSpec
from efedllm.errors import ConfigError
from efedllm_client.jobs.failover import Place
from efedllm_client.jobs.generation import Finished, Generation
from efedllm_client.jobs.job import Consent
from efedllm_client.jobs.options import GenerateOptions
from efedllm_client.payments.session import PaidSession
from efedllm_client.policy import RetryPolicy
from efedllm_client.routes.choose import (
    STANDING_EXCLUDED,
    STATUS_ACTIVE,
    Candidate,
    Route,
    choose_known_route,
    find_candidate,
    unreachable,
)
from efedllm_client.text.tokenizer import Text

# A canary through another node would be none: nothing is tried elsewhere.
ONE_ROUTE = RetryPolicy(attempts=0)


@dataclass(frozen=True)
class Planted:
    """A canary that its node has answered and committed to. cost: wei; epoch: of the chain when it ended."""

    node: str
    hop: int
    route: tuple[str, ...]
    session_id: bytes
    job_id: bytes
    prompt_tokens: int
    tokens: int
    cost: int
    epoch: int

    def to_json(self) -> dict[str, Any]:
        """Bytes as 0x hex."""
        return {
            name: "0x" + value.hex() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


class Planting(Generation):
    """A generation in which one node of the route is asked for a wrong answer."""

    def __init__(
        self,
        place: Place,
        text: Text,
        prompt_ids: list[int],
        options: GenerateOptions,
        candidates: list[Candidate],
        node: str,
    ) -> None:
        super().__init__(place, text, prompt_ids, options, ONE_ROUTE, candidates)
        self._node = node

    def consent(self, session: PaidSession, spec: JobSpec, route: Route) -> Consent | None:
        hop = route.addresses.index(self._node)
        digest = Canary(spec.job_id, hop).digest(self.place.chain.efl_domain)
        return Consent(hop, session.sign_digest(digest))

    async def run(self) -> Finished:
        """The finished generation. Raises EfedError, "canary-refused" when the node gives this wallet none."""
        finished: Finished | None = None
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Finished):
                    finished = event
        assert finished is not None
        return finished


def route_through(
    candidates: Sequence[Candidate], layers: int, node: str, known: Sequence[Sequence[str]] = ()
) -> Route:
    """The cheapest route with `node` (an address, or the start of one) on it; one of the `known` ones when it costs
    little more.

    Raises ConfigError "unknown-node", "node-excluded", "node-unreachable", "node-not-on-route".
    """
    wanted = find_candidate(candidates, node)
    if wanted.standing == STANDING_EXCLUDED or wanted.status != STATUS_ACTIVE:
        raise ConfigError(
            "node-excluded",
            f"{wanted.address} is not accepting work (paused, retired or excluded by the verifiers).",
            "Choose another node; see `efedllm network`.",
        )
    if wanted.latency_ms is None:
        raise unreachable(wanted)
    # Whoever shares a layer with the node is left out, so that every route leads through it.
    beside = [c for c in candidates if c.hi <= wanted.lo or c.lo >= wanted.hi]
    try:
        return choose_known_route([*beside, wanted], layers, known)
    except ConfigError as error:
        raise ConfigError(
            "node-not-on-route",
            f"No route leads through {wanted.address}, which serves layers {wanted.lo}..{wanted.hi - 1}: "
            f"{error.message}",
            "Wait for nodes of the other layers; see `efedllm network`.",
        ) from error


def check_wallet(wallet: str, candidates: Sequence[Candidate]) -> None:
    """ConfigError "canary-visible" when the wallet is a node's account: sessions show their client to verifiers."""
    if any(candidate.address == wallet for candidate in candidates):
        raise ConfigError(
            "canary-visible",
            f"{wallet} is the account of a node: every verifier could see who plants here.",
            "Plant from a wallet of its own, and name it with `efedllm node run --canary-client`.",
        )


def check_prompts(prompts: Sequence[str], count: int | None) -> list[str]:
    """The first `count` different prompts (None: all). Raises ConfigError "empty-prompt" or "too-few-prompts"."""
    wanted = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not wanted:
        raise ConfigError("empty-prompt", "There is no prompt to plant.", "Give --prompt TEXT or --prompts FILE.")
    if count is not None and count > len(wanted):
        raise ConfigError(
            "too-few-prompts",
            f"{count} canaries were asked for, with {len(wanted)} different prompts.",
            "Give as many prompts: the same one again and again would give the canaries away.",
        )
    return wanted[:count]


async def plant(
    place: Place,
    text: Text,
    candidates: list[Candidate],
    wallet: str,
    node: str,
    prompts: Sequence[list[int]],
    options: GenerateOptions,
) -> AsyncGenerator[Planted]:
    """Buy a job for each prompt (token ids) over a route through `node` and ask it for a canary.

    Raises EfedError; what was yielded before is planted and paid for.
    """
    check_wallet(wallet, candidates)
    address = find_candidate(candidates, node).address
    for prompt in prompts:
        known = await place.sessions.open_routes(place.model.model_id)
        route = route_through(candidates, place.model.layers, address, known)
        chosen = replace(options, route=route.addresses)
        finished = await Planting(place, text, prompt, chosen, candidates, address).run()
        (outcome,) = finished.jobs
        yield Planted(
            node=address,
            hop=route.addresses.index(address),
            route=route.addresses,
            session_id=outcome.session_id,
            job_id=outcome.record.spec.job_id,
            prompt_tokens=len(prompt),
            tokens=len(finished.token_ids),
            cost=outcome.cost,
            epoch=(await place.chain.now()).epoch,
        )

"""Generating text: pay a session, run the job, and go on elsewhere when a route fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from efedllm.commitments.messages import EXACT_PROFILE
from efedllm.errors import EfedError
from efedllm_client.jobs.failover import JobOutcome, Place, RoutedWork, RouteWishes, Started, Switched, hops_of
from efedllm_client.jobs.job import Job, Patience, RouteFailure
from efedllm_client.jobs.options import GenerateOptions, Sampling, sampling_of
from efedllm_client.payments.session import SessionRequest, terms_for
from efedllm_client.policy import RetryPolicy
from efedllm_client.routes.choose import Candidate, Route
from efedllm_client.text.decoder import IncrementalDecoder
from efedllm_client.text.tokenizer import Text

__all__ = ["Event", "Finished", "Generation", "JobOutcome", "Piece", "Started", "Switched"]


@dataclass(frozen=True)
class Piece:
    """One more token, and the text it adds (maybe none yet)."""

    token: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The generation is complete."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    seed: bytes
    jobs: list[JobOutcome]


Event = Started | Piece | Switched | Finished


def check_token(number: int, known: int, token: int) -> None:
    """Raises EfedError "tokens-differ" when a route gives another token than the one before it gave."""
    if token != known:
        raise EfedError(
            "tokens-differ",
            f"Generated token {number + 1} is {token} on this route and was {known} on the one that broke off. "
            "The model gives the same tokens everywhere: a node lied.",
            "Do not use the text. Ask again with the same --seed, and leave out a node with --avoid to find which; the "
            "receipts name the nodes.",
        )


class Generation(RoutedWork):
    """What stays the same over all routes of one generation. `events` runs once."""

    def __init__(
        self,
        place: Place,
        text: Text,
        prompt_ids: list[int],
        options: GenerateOptions,
        retry: RetryPolicy | None = None,
        candidates: list[Candidate] | None = None,
    ) -> None:
        wishes = RouteWishes(
            options.route, options.avoid, options.max_price, options.deposit, options.fresh_session, options.explore
        )
        super().__init__(place, wishes, retry or RetryPolicy(), candidates)
        self._text = text
        self._prompt = prompt_ids
        self._options = options
        eos = text.eos[0] if text.eos else None
        self._exact = place.model.profile == EXACT_PROFILE
        self._sampling: Sampling = sampling_of(options, eos, exact=self._exact)
        self._ids: list[int] = []
        self._decoder = IncrementalDecoder(text.tokenizer, prompt_ids)
        self._pieces: list[str] = []
        text.check_length(len(prompt_ids), options.max_tokens)

    async def events(self) -> AsyncGenerator[Event]:
        """Started, then Piece after Piece (with Switched and Started between them), then Finished.

        Raises EfedError when no route is left or the attempts are used up.
        """
        async with aclosing(self.over_routes()) as events:
            async for event in events:
                assert isinstance(event, Started | Piece | Switched)
                yield event
        tail = self._decoder.flush()
        if tail:
            self._pieces.append(tail)
            yield Piece(self._ids[-1], tail)
        yield Finished(
            tuple(self._prompt), tuple(self._ids), "".join(self._pieces), self._sampling.seed, list(self.jobs)
        )

    def is_complete(self) -> bool:
        ended = bool(self._ids) and self._options.stop_at_eos and self._ids[-1] in self._text.eos
        return ended or len(self._ids) >= self._options.max_tokens

    def results(self) -> int:
        return len(self._ids)

    def tokens_left(self) -> int:
        return len(self._prompt) + self._options.max_tokens

    async def attempt(self, route: Route, fresh: bool) -> AsyncGenerator[Event]:
        """Run the rest of the generation on one route. Every token is sampled at the same absolute position, with the
        same seed, as without an interruption.

        The tokens of a route that broke off were committed by nobody. A float model goes on after them: they become
        part of the prompt. An exact model gives the same tokens on every route, so that this one computes and commits
        to them too, for the price that they would have as a prompt. Raises EfedError "tokens-differ" when it does not.
        """
        place = self.place
        known, carried = (tuple(self._ids), ()) if self._exact else ((), tuple(self._ids))
        prompt = [*self._prompt, *carried]
        new = self._options.max_tokens - len(carried)
        request = SessionRequest(place.model.model_id, route, self.tokens_left(), self._options.deposit, fresh)
        async with place.sessions.acquire(request) as session:
            terms = terms_for(session, len(prompt), new)
            spec = self._sampling.spec(session.session_id, await session.take_job(), prompt, new)
            patience = Patience(token=self.retry.stall_seconds)
            job = Job(session, spec, prompt, hops_of(route), place.chain.efl_domain, terms, patience)
            yield Started(route, session.session_id, spec.job_id, self._sampling.seed)
            error: EfedError | None = None
            try:
                async with aclosing(job.run()) as tokens:
                    at = 0
                    async for token in tokens:
                        if at < len(known):
                            check_token(at, known[at], token)
                            at += 1
                            continue
                        yield self._push(token)
                        if self.is_complete():
                            # Nodes know one end token; a model may have several.
                            job.stop()
            except RouteFailure as failure:
                error = failure.error
                raise
            except EfedError as failure:
                error = failure
                raise
            except BaseException:
                error = EfedError("cancelled", "The generation was stopped.")
                raise
            finally:
                await self.account(session, job.record, route, error)

    def _push(self, token: int) -> Piece:
        self._ids.append(token)
        piece = self._decoder.push(token)
        self._pieces.append(piece)
        return Piece(token, piece)

"""Generating text: one job on a route, and another one on the next route when it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from efedllm.commitments.messages import EXACT_PROFILE
from efedllm.errors import EfedError
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.failover import RouteSwitched, run_with_failover
from efedllm_client.jobs.generation_job import GenerationJob
from efedllm_client.jobs.job import RouteFailure
from efedllm_client.jobs.options import GenerateOptions, sampling_of
from efedllm_client.jobs.outcome import JobOutcome, finish_job
from efedllm_client.jobs.route_chooser import RouteChooser
from efedllm_client.routes.choose import Candidate, Route
from efedllm_client.text.decoder import IncrementalDecoder
from efedllm_client.text.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class RouteStarted:
    """A route starts to work on the prompt."""

    route: Route
    session_id: bytes
    job_id: bytes
    seed: bytes


@dataclass(frozen=True)
class Piece:
    """One more token, and the text it adds (empty while a character is incomplete)."""

    token: int
    text: str


@dataclass(frozen=True)
class GenerationFinished:
    """The generation is complete."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    seed: bytes
    jobs: list[JobOutcome]


GenerationEvent = RouteStarted | Piece | RouteSwitched | GenerationFinished


def check_token(number: int, known: int, token: int) -> None:
    """Raises EfedError "tokens-differ" when a route gives another token than the one before it gave."""
    if token != known:
        raise EfedError(
            "tokens-differ",
            f"Generated token {number + 1} is {token} on this route and was {known} on the one that broke off. "
            "The model gives the same tokens everywhere: a node lied.",
            "Do not use the text. Run it again with the same --seed and leave out one node with --avoid to find which "
            "one lied; the receipts name the nodes.",
        )


class Generation:
    """One generation over as many routes as it needs. `events` runs once."""

    def __init__(
        self,
        context: JobContext,
        tokenizer: ModelTokenizer,
        prompt_ids: list[int],
        options: GenerateOptions,
        candidates: list[Candidate] | None = None,
    ) -> None:
        """`candidates`: nodes probed a moment ago. Raises ConfigError "bad-option" or "too-long"."""
        self.jobs: list[JobOutcome] = []
        self._context = context
        self._tokenizer = tokenizer
        self._prompt = prompt_ids
        self._options = options
        self._chooser = RouteChooser(context, options.route, candidates)
        self._exact = context.model.profile == EXACT_PROFILE
        self._sampling = sampling_of(options, tokenizer.eos[0] if tokenizer.eos else None, exact=self._exact)
        self._ids: list[int] = []
        self._decoder = IncrementalDecoder(tokenizer.tokenizer, prompt_ids)
        self._pieces: list[str] = []
        tokenizer.check_length(len(prompt_ids), options.max_tokens)

    async def events(self) -> AsyncGenerator[GenerationEvent]:
        """RouteStarted, then Pieces (with RouteSwitched and RouteStarted between them), then GenerationFinished.

        Raises EfedError when no route is left or the retries are used up.
        """
        fresh = self._options.route.fresh_session
        async with aclosing(run_with_failover(self, self._chooser, self._context, fresh)) as events:
            async for event in events:
                yield event
        tail = self._decoder.flush()
        if tail:
            self._pieces.append(tail)
            yield Piece(self._ids[-1], tail)
        yield GenerationFinished(
            tuple(self._prompt), tuple(self._ids), "".join(self._pieces), self._sampling.seed, list(self.jobs)
        )

    def is_complete(self) -> bool:
        ended = bool(self._ids) and self._options.stop_at_eos and self._ids[-1] in self._tokenizer.eos
        return ended or len(self._ids) >= self._options.max_tokens

    def results(self) -> int:
        return len(self._ids)

    def tokens_left(self) -> int:
        return len(self._prompt) + self._options.max_tokens

    async def attempt(self, route: Route, fresh: bool) -> AsyncGenerator[RouteStarted | Piece]:
        """Run the rest of the generation on one route.

        Every token is sampled at the same absolute position, with the same seed, as without an interruption. No node
        committed to the tokens of a route that failed. A float model continues after them: they become part of the
        prompt. An exact model gives the same tokens on every route, so this route computes and commits to them too, for
        the price that they would have as a prompt. Raises EfedError "tokens-differ" when it gives other ones.
        """
        context = self._context
        known, carried = (tuple(self._ids), ()) if self._exact else ((), tuple(self._ids))
        prompt = [*self._prompt, *carried]
        new = self._options.max_tokens - len(carried)
        request = context.request(route, self.tokens_left(), self._options.route.deposit, fresh)
        async with context.sessions.acquire(request) as session:
            job = GenerationJob(await context.order(session, self._sampling, prompt, new, route))
            yield RouteStarted(route, session.session_id, job.record.spec.job_id, self._sampling.seed)
            error: EfedError | None = None
            try:
                async with aclosing(job.run()) as tokens:
                    at = 0
                    async for token in tokens:
                        if at < len(known):
                            check_token(at, known[at], token)
                            at += 1
                            continue
                        yield self.push(token)
                        if self.is_complete():
                            # Nodes know only one end token, a model may have several.
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
                self.jobs.append(await finish_job(context, session, job.record, route, error))

    def push(self, token: int) -> Piece:
        """Add a generated token."""
        self._ids.append(token)
        piece = self._decoder.push(token)
        self._pieces.append(piece)
        return Piece(token, piece)

"""Payment rules: what a voucher promises, what a session holds, how a payment is split. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efedllm.chain.amounts import GWEI, cost_of_tokens, format_amount
from efedllm.commitments.session import BPS
from efedllm.errors import ConfigError, ProtocolError
from efedllm_client.config import ClientConfig


def tokens_for(amount: int, price: int) -> int | None:
    """Most tokens that `amount` wei pays for; None when the route is free."""
    return None if price == 0 else amount * 1000 // (price * GWEI)


@dataclass(frozen=True)
class PaymentTerms:
    """What one job may cost, fixed when it starts."""

    price: int  # gwei per 1000 tokens, the whole route, agreed in the session key
    deposit: int  # wei locked in the session on chain
    billed_before: int  # tokens of the session's earlier jobs
    prompt_tokens: int
    max_new_tokens: int
    advance: int = ClientConfig.advance_tokens
    every: int = ClientConfig.voucher_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of the session at the end of the job when it runs to its limit."""
        return self.billed_before + self.prompt_tokens + self.max_new_tokens


@dataclass(frozen=True)
class Amount:
    """What a voucher promises, both counted over the whole session."""

    cumulative: int  # wei
    tokens: int


def due_tokens(terms: PaymentTerms, delivered: int) -> int:
    """Session tokens owed once `delivered` tokens of this job have arrived."""
    return terms.billed_before + terms.prompt_tokens + min(delivered, terms.max_new_tokens)


def payable(terms: PaymentTerms, delivered: int) -> Amount:
    """The most that the client promises now: what is due and the advance, at most the job and the deposit.

    Raises ConfigError "deposit-exhausted" when the deposit does not cover even what is due.
    """
    due = due_tokens(terms, delivered)
    tokens = min(due + terms.advance, terms.most_tokens)
    limit = tokens_for(terms.deposit, terms.price)
    if limit is not None and tokens > limit:
        if due > limit:
            raise ConfigError(
                "deposit-exhausted",
                f"The session's deposit pays for {limit} tokens, {due} are due.",
                "Open a larger session with --deposit.",
            )
        tokens = limit
    return Amount(cost_of_tokens(tokens, terms.price), tokens)


def next_voucher(terms: PaymentTerms, signed: Amount, delivered: int) -> Amount | None:
    """The voucher to sign now, never lower than `signed`. None while the last one pays far enough ahead."""
    target = payable(terms, delivered)
    if target.tokens <= signed.tokens or target.cumulative < signed.cumulative:
        return None
    at_limit = target.tokens == terms.most_tokens
    return target if target.tokens - signed.tokens >= terms.every or at_limit else None


def answer_demand(terms: PaymentTerms, signed: Amount, delivered: int, due: int) -> Amount | None:
    """The answer to a node that waits for `due` wei (cumulative over the session).

    Returns what to sign, or None when the last voucher already says as much as the client owes: tokens may be on
    their way, so a demand somewhat ahead of them is met only as far as they arrive.
    Raises ProtocolError "overcharge" when the demand exceeds the price of the whole job.
    """
    limit = cost_of_tokens(terms.most_tokens, terms.price)
    if due > limit:
        raise ProtocolError(
            "overcharge",
            f"A node asks for {format_amount(due)} where the whole job costs {format_amount(limit)}.",
            "The job was stopped; leave the node out with --avoid.",
        )
    target = payable(terms, delivered)
    return target if target.tokens > signed.tokens and target.cumulative >= signed.cumulative else None


def session_deposit(
    job_cost: int, wanted: int | None, cap: int | None, jobs_ahead: int = ClientConfig.jobs_ahead
) -> int:
    """Deposit of a new session, wei: `wanted`, else the cost of several such jobs; at most `cap` (probation).

    Raises ConfigError when the job alone does not fit.
    """
    amount = wanted if wanted is not None else job_cost * jobs_ahead
    if wanted is not None and wanted < job_cost:
        raise ConfigError(
            "deposit-too-small",
            f"--deposit is {format_amount(wanted)}, the job may cost {format_amount(job_cost)}.",
            "Raise --deposit or lower --max-tokens.",
        )
    if cap is not None and cap < job_cost:
        raise ConfigError(
            "probation-cap",
            f"A node of the route is on probation, which caps the session at {format_amount(cap)}; "
            f"the job may cost {format_amount(job_cost)}.",
            "Lower --max-tokens or leave the node out with --avoid.",
        )
    return amount if cap is None else min(amount, cap)


def split_shares(hops: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Basis points of a payment for each hop, given (price, layers). They sum to 10000.

    The split follows the prices; on a free route it follows the layers. Rounding down leaves units over: they go to the
    largest remainders, on ties to the first hop.
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

"""Rules of payment, as pure functions: cost of tokens, credit, checks of vouchers, time of settlement."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.chain.amounts import GWEI, cost_of_tokens, format_amount
from efedllm.chain.types import ChainTime
from efedllm.commitments.messages import BPS, Voucher
from efedllm.errors import ProtocolError
from efedllm_node.config import Policy

OPEN, CLOSING, CLOSED = 1, 2, 3


def tokens_covered(cumulative: int, price_per_ktok: int) -> int | None:
    """Tokens that `cumulative` wei pay for: the most T whose cost is within it. None: any number (price 0)."""
    return None if price_per_ktok == 0 else cumulative * 1000 // (price_per_ktok * GWEI)


@dataclass(frozen=True)
class SessionAccount:
    """What one session has paid and used. `billed`: tokens of its other jobs, finished and running; a running one
    counts its prompt from the start.
    """

    price: int
    cumulative: int
    billed: int
    credit: int


@dataclass(frozen=True)
class Due:
    """What a PAY frame asks for, in wei and session tokens."""

    due: int
    paid: int
    tokens: int


def payment_due(account: SessionAccount, prompt: int, done: int, more: int) -> Due | None:
    """None when a job with `done` positions behind it may work on `more`, else what must be paid first.

    A job may always process its prompt (its session was checked when it was opened); beyond the prompt the work of the
    whole session runs at most `credit` tokens ahead of what the vouchers, or of one unpaid prompt, cover. What other
    jobs owe counts, so that jobs side by side get no credit of their own.
    """
    covered = tokens_covered(account.cumulative, account.price)
    if covered is None:
        return None
    wanted = account.billed + done + more
    ahead = max(covered, min(covered, account.billed) + prompt) + account.credit
    if done + more <= prompt or wanted <= ahead:
        return None
    return Due(cost_of_tokens(account.billed + done, account.price), account.cumulative, account.billed + done)


def check_credit(account: SessionAccount, deposit: int, prompt: int) -> None:
    """Whether a session may open another job. ProtocolError "payment-required" or "deposit-exhausted"."""
    covered = tokens_covered(account.cumulative, account.price)
    if covered is not None and account.billed > covered + account.credit:
        raise ProtocolError(
            "payment-required",
            f"The session owes {account.billed} tokens and has paid for {covered}.",
            f"Send a voucher of at least {cost_of_tokens(account.billed, account.price)} wei.",
        )
    needed = cost_of_tokens(account.billed + prompt + 1, account.price)
    if needed > deposit:
        raise ProtocolError(
            "deposit-exhausted",
            f"The session's deposit is {format_amount(deposit)}, this job needs at least {format_amount(needed)}.",
            "Top the session up, or open a new one.",
        )


def check_signer(is_contract: bool, *, allowed: bool) -> None:
    """ProtocolError "contract-signer" for a session whose signer had code when it opened, unless those are allowed.

    Such a contract may vouch for a payment and refuse it afterwards. A node counts vouchers by the signer's key only,
    and the escrow takes those from any session.
    """
    if is_contract and not allowed:
        raise ProtocolError(
            "contract-signer",
            "The session's signer was a contract when the session opened. This node serves keys only.",
            "Open a session with a plain key as its signer.",
        )


def billed_tokens(positions: int, prompt: int, *, emits: bool = True) -> int:
    """Prompt and generated tokens of a job that processed `positions`: the last sampled token was never fed.

    `emits`: False for a text that is embedded."""
    return positions + 1 if emits and positions >= prompt else positions


def billed_on_crash(positions: int, prompt: int, account: SessionAccount, *, emits: bool = True) -> int:
    """Tokens counted for a job that this node's own crash ended: nothing beyond what is paid.

    Every other end counts all work: whoever can end a job without owing for it, a client by a wrong message or its
    accomplice by hanging up, could have any number of jobs for nothing.
    """
    worked = billed_tokens(positions, prompt, emits=emits)
    covered = tokens_covered(account.cumulative, account.price)
    return worked if covered is None else max(0, min(worked, covered - account.billed))


def check_share(own_price: int, route_price: int, share_bps: int, hops: int) -> None:
    """ProtocolError "price-too-low" unless our share of the route price pays our own price; prices are in gwei.

    Clients round shares by up to one bps for each hop, so that much less is accepted.
    """
    if (share_bps + hops) * route_price < own_price * BPS:
        raise ProtocolError(
            "price-too-low",
            f"The session pays this node {share_bps * route_price // BPS} gwei for 1000 tokens ({share_bps} bps of "
            f"{route_price} gwei). Its price is {own_price} gwei.",
            "Open a session with shares in proportion to the nodes' prices.",
        )


@dataclass(frozen=True)
class Standing:
    """What a voucher is checked against."""

    session_id: bytes
    deposit: int
    cumulative: int


def check_voucher(standing: Standing, voucher: Voucher) -> bool:
    """Whether `voucher` (its signature checked elsewhere) is news; False for a repetition.

    ProtocolError "wrong-session", "voucher-not-monotone" or "voucher-exceeds-deposit".
    """
    if voucher.session_id != standing.session_id:
        raise ProtocolError(
            "wrong-session", "This is a voucher for another session.", "Sign one for the session of the job."
        )
    if voucher.cumulative < standing.cumulative:
        raise ProtocolError(
            "voucher-not-monotone",
            f"The voucher pays {voucher.cumulative} wei, an earlier one paid {standing.cumulative}.",
            "Vouchers state running totals: sign a larger one.",
        )
    if voucher.cumulative > standing.deposit:
        raise ProtocolError(
            "voucher-exceeds-deposit",
            f"The voucher pays {voucher.cumulative} wei, the session holds {standing.deposit}.",
            "Top the session up first.",
        )
    return voucher.cumulative > standing.cumulative


@dataclass(frozen=True)
class Unsettled:
    """A session with a voucher, as the settler sees it. `status` is the chain's; `busy`: a job of it runs;
    `settled_in`: the last epoch in which it was seen to be settled, by anybody.
    """

    session_id: bytes
    hop: int
    cumulative: int
    settled: int
    status: int
    expiry: int
    busy: bool = False
    settled_in: int | None = None


def settle_reason(session: Unsettled, time: ChainTime, draining: bool, policy: Policy) -> str | None:
    """Why the session's best voucher should be settled now, None when it should not."""
    gain = session.cumulative - session.settled
    if session.status not in (OPEN, CLOSING) or gain < max(1, policy.settle_min):
        return None
    if session.status == CLOSING:
        return "closing"
    if session.expiry - time.timestamp <= policy.expiry_margin * time.epoch_length:
        return "expiring"
    if draining:
        return "draining"
    if gain >= policy.settle_above:
        return "large"
    # A running job brings a voucher every moment: one transaction an epoch is enough for those.
    due = not (session.busy and session.settled_in == time.epoch)
    if due and time.fraction >= min(0.95, policy.settle_at + policy.settle_stagger * session.hop):
        return "epoch"
    return None

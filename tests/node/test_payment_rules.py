"""Costs, credit, vouchers and settlement, from literal states."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.chain.amounts import cost_of_tokens
from efedllm.chain.types import ChainTime
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import Voucher
from efedllm.errors import ProtocolError
from efedllm_node.config import Policy
from efedllm_node.payments.rules import (
    Due,
    SessionAccount,
    Standing,
    Unsettled,
    billed_on_crash,
    billed_tokens,
    check_credit,
    check_share,
    check_voucher,
    payment_due,
    settle_reason,
    tokens_covered,
)

PRICE = 3  # gwei for 1000 tokens: 3000000 wei a token
TOKEN = 3_000_000
SESSION = b"\1" * 32
POLICY = Policy(settle_min=10, settle_above=10**9)


def account(cumulative: int = 0, billed: int = 0, credit: int = 4) -> SessionAccount:
    return SessionAccount(PRICE, cumulative, billed, credit)


@given(st.integers(0, 10**9), st.integers(1, 2**40))
def test_covered_tokens_are_the_most_that_the_money_buys(cumulative: int, price: int) -> None:
    covered = tokens_covered(cumulative, price)
    assert covered is not None
    assert cost_of_tokens(covered, price) <= cumulative < cost_of_tokens(covered + 1, price)


def test_the_prompt_and_the_credit_run_ahead_of_payment() -> None:
    assert payment_due(account(), prompt=10, done=0, more=10) is None
    assert payment_due(account(), prompt=10, done=13, more=1) is None
    assert payment_due(account(), prompt=10, done=14, more=1) == Due(14 * TOKEN, 0, 14)


def test_vouchers_extend_the_work() -> None:
    paid = account(cumulative=20 * TOKEN)
    assert payment_due(paid, prompt=10, done=23, more=1) is None
    assert payment_due(paid, prompt=10, done=24, more=1) == Due(24 * TOKEN, 20 * TOKEN, 24)


def test_other_jobs_of_the_session_count() -> None:
    paid = account(cumulative=20 * TOKEN, billed=15)
    assert payment_due(paid, prompt=2, done=8, more=1) is None
    assert payment_due(paid, prompt=2, done=9, more=1) == Due(24 * TOKEN, 20 * TOKEN, 24)


def test_a_free_route_never_pauses() -> None:
    free = SessionAccount(0, 0, 10**6, 1)
    assert payment_due(free, prompt=1, done=10**6, more=1) is None
    check_credit(free, deposit=0, prompt=10)


def test_a_session_in_debt_opens_no_job() -> None:
    check_credit(account(billed=4), deposit=10**12, prompt=1)
    with pytest.raises(ProtocolError) as caught:
        check_credit(account(billed=5), deposit=10**12, prompt=1)
    assert caught.value.code == "payment-required"
    assert str(5 * TOKEN) in caught.value.hint


def test_a_deposit_that_cannot_pay_the_prompt_opens_no_job() -> None:
    check_credit(account(), deposit=11 * TOKEN, prompt=10)
    with pytest.raises(ProtocolError) as caught:
        check_credit(account(), deposit=11 * TOKEN - 1, prompt=10)
    assert caught.value.code == "deposit-exhausted"


@pytest.mark.parametrize(("positions", "billed"), [(0, 0), (3, 3), (9, 9), (10, 11), (14, 15)])
def test_billing_counts_the_token_that_was_never_fed(positions: int, billed: int) -> None:
    assert billed_tokens(positions, prompt=10) == billed
    # A text that is embedded: nothing was sampled beyond what went in.
    assert billed_tokens(positions, prompt=10, emits=False) == positions


def test_a_job_that_our_crash_ended_costs_only_what_is_paid() -> None:
    paid = account(cumulative=12 * TOKEN, billed=5)
    assert billed_on_crash(20, 10, paid) == 7
    assert billed_on_crash(3, 10, paid) == 3
    assert billed_on_crash(3, 10, account(billed=5)) == 0


def test_jobs_side_by_side_share_one_credit() -> None:
    # Another job's unpaid prompt of 10 counts: beyond its own prompt this one waits for money.
    beside = account(billed=10)
    assert payment_due(beside, prompt=10, done=0, more=10) is None
    assert payment_due(beside, prompt=10, done=10, more=1) == Due(20 * TOKEN, 0, 20)
    # What was paid for does not.
    after = account(cumulative=10 * TOKEN, billed=10)
    assert payment_due(after, prompt=10, done=13, more=1) is None
    assert payment_due(after, prompt=10, done=14, more=1) is not None


def test_shares_may_be_rounded_but_not_cut() -> None:
    check_share(own_price=1, route_price=3, share_bps=3333, hops=3)
    with pytest.raises(ProtocolError) as caught:
        check_share(own_price=1, route_price=3, share_bps=3300, hops=3)
    assert caught.value.code == "price-too-low"


@pytest.mark.parametrize(
    ("session", "cumulative", "code"),
    [
        (b"\2" * 32, 60, "wrong-session"),
        (SESSION, 49, "voucher-not-monotone"),
        (SESSION, 101, "voucher-exceeds-deposit"),
    ],
)
def test_vouchers_that_do_not_count(session: bytes, cumulative: int, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_voucher(Standing(SESSION, deposit=100, cumulative=50), Voucher(session, cumulative, 1, ZERO32))
    assert caught.value.code == code


def test_vouchers_that_do() -> None:
    standing = Standing(SESSION, deposit=100, cumulative=50)
    assert check_voucher(standing, Voucher(SESSION, 100, 1, ZERO32))
    assert not check_voucher(standing, Voucher(SESSION, 50, 1, ZERO32))


def at(fraction: float) -> ChainTime:
    return ChainTime(1, 10_000 + round(100 * fraction), 5, 0, 10_000, 100)


CALM = Unsettled(SESSION, hop=0, cumulative=1000, settled=0, status=1, expiry=10**6)


@pytest.mark.parametrize(
    ("session", "fraction", "draining", "reason"),
    [
        (CALM, 0.5, False, None),
        (CALM, 0.70, False, "epoch"),
        (replace(CALM, hop=2), 0.70, False, None),
        (replace(CALM, hop=2), 0.75, False, "epoch"),
        (replace(CALM, hop=60), 0.96, False, "epoch"),
        # While a job streams, once an epoch: a voucher every moment must not be a transaction every moment.
        (replace(CALM, busy=True, settled_in=4), 0.70, False, "epoch"),
        (replace(CALM, busy=True, settled_in=5), 0.99, False, None),
        (replace(CALM, busy=False, settled_in=5), 0.70, False, "epoch"),
        (replace(CALM, busy=True, settled_in=5, cumulative=10**10), 0.70, False, "large"),
        (replace(CALM, busy=True, settled_in=5), 0.70, True, "draining"),
        (CALM, 0.1, True, "draining"),
        (replace(CALM, status=2), 0.1, False, "closing"),
        (replace(CALM, status=3), 0.9, True, None),
        (replace(CALM, expiry=10_050), 0.1, False, "expiring"),
        (replace(CALM, cumulative=10**10), 0.1, False, "large"),
        (replace(CALM, settled=1000), 0.9, True, None),
        (replace(CALM, settled=991), 0.9, True, None),
    ],
)
def test_when_vouchers_are_settled(session: Unsettled, fraction: float, draining: bool, reason: str | None) -> None:
    assert settle_reason(session, at(fraction), draining, POLICY) == reason

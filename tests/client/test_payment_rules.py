"""Payment rules: a client never over-pays, never goes back, answers demands only as far as tokens arrived."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.chain.amounts import cost_of_tokens as cost_of
from efedllm.errors import ConfigError, ProtocolError
from efedllm_client.payments.rules import (
    Amount,
    PaymentTerms,
    answer_demand,
    due_tokens,
    next_voucher,
    payable,
    session_deposit,
    tokens_for,
)


@st.composite
def terms(draw: st.DrawFn) -> PaymentTerms:
    price = draw(st.integers(0, 10**9))
    before, prompt, new = draw(st.integers(0, 5000)), draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    spare = draw(st.integers(0, 10**20))
    return PaymentTerms(
        price=price,
        deposit=cost_of(before + prompt + new, price) + spare,
        billed_before=before,
        prompt_tokens=prompt,
        max_new_tokens=new,
        advance=draw(st.integers(1, 64)),
        every=draw(st.integers(1, 32)),
    )


@given(st.integers(0, 10**9), st.integers(0, 10**12))
def test_cost_is_the_exact_price_rounded_up(tokens: int, price: int) -> None:
    assert cost_of(tokens, price) == ceil(Fraction(tokens * price * 10**9, 1000))


@given(st.integers(0, 10**30), st.integers(1, 10**12))
def test_tokens_for_is_the_inverse_of_cost(amount: int, price: int) -> None:
    tokens = tokens_for(amount, price)
    assert tokens is not None
    assert cost_of(tokens, price) <= amount < cost_of(tokens + 1, price)


@given(terms(), st.lists(st.integers(0, 40), max_size=60))
@settings(max_examples=200, deadline=None)
def test_vouchers_are_monotone_and_never_pay_more_than_the_advance(agreed: PaymentTerms, arrivals: list[int]) -> None:
    signed, delivered = Amount(cost_of(agreed.billed_before, agreed.price), agreed.billed_before), 0
    for arrived in [0, *arrivals]:
        delivered = min(delivered + arrived, agreed.max_new_tokens)
        voucher = next_voucher(agreed, signed, delivered)
        if voucher is not None:
            assert voucher.cumulative >= signed.cumulative
            assert voucher.tokens > signed.tokens
            signed = voucher
        due = due_tokens(agreed, delivered)
        assert signed.tokens <= min(due + agreed.advance, agreed.most_tokens)
        assert signed.cumulative == cost_of(signed.tokens, agreed.price)
        assert signed.cumulative <= agreed.deposit
        # The route never waits: what is signed covers what is due unless the advance is below the step.
        assert signed.tokens >= min(due, agreed.most_tokens) + min(0, agreed.advance - agreed.every)


@given(terms(), st.integers(0, 2000), st.integers(0, 10**25))
@settings(max_examples=200, deadline=None)
def test_a_demand_is_met_at_most_up_to_what_is_payable(agreed: PaymentTerms, delivered: int, due: int) -> None:
    signed = Amount(cost_of(agreed.billed_before, agreed.price), agreed.billed_before)
    if due > cost_of(agreed.most_tokens, agreed.price):
        with pytest.raises(ProtocolError) as caught:
            answer_demand(agreed, signed, delivered, due)
        assert caught.value.code == "overcharge"
        return
    answer = answer_demand(agreed, signed, delivered, due)
    assert answer is None or signed.cumulative <= answer.cumulative <= payable(agreed, delivered).cumulative


def test_a_demand_ahead_of_the_tokens_gets_no_more_than_the_last_voucher() -> None:
    agreed = PaymentTerms(price=1000, deposit=10**18, billed_before=0, prompt_tokens=10, max_new_tokens=100, advance=4)
    signed = payable(agreed, 0)
    assert signed.tokens == 14
    assert answer_demand(agreed, signed, 0, cost_of(60, 1000)) is None
    later = answer_demand(agreed, signed, 5, cost_of(60, 1000))
    assert later == Amount(cost_of(19, 1000), 19)


def test_unused_advance_of_an_earlier_job_is_not_signed_again() -> None:
    agreed = PaymentTerms(price=1000, deposit=10**18, billed_before=10, prompt_tokens=2, max_new_tokens=50, advance=4)
    signed = Amount(cost_of(26, 1000), 26)
    assert next_voucher(agreed, signed, 0) is None
    assert next_voucher(agreed, signed, 17) is None
    assert next_voucher(agreed, signed, 18) == Amount(cost_of(34, 1000), 34)


def test_the_deposit_bounds_the_voucher() -> None:
    agreed = PaymentTerms(price=1000, deposit=cost_of(20, 1000), billed_before=0, prompt_tokens=10, max_new_tokens=100)
    assert payable(agreed, 2).tokens == 20
    with pytest.raises(ConfigError) as caught:
        payable(agreed, 11)
    assert caught.value.code == "deposit-exhausted"


def test_session_deposit() -> None:
    assert session_deposit(10, None, None) == 80
    assert session_deposit(10, 15, None) == 15
    assert session_deposit(10, None, 25) == 25
    for deposit, cap, code in ((9, None, "deposit-too-small"), (None, 9, "probation-cap")):
        with pytest.raises(ConfigError) as caught:
            session_deposit(10, deposit, cap)
        assert caught.value.code == code

"""Work and payment hand in hand, through real nodes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import pytest_asyncio

from efedllm.chain.amounts import cost_of_tokens
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from efedllm.wire import Identity, connect, handshake, parse
from efedllm.wire.messages import AckMsg, ActMsg, ErrorMsg, PayMsg
from efedllm_node.payments.rules import CLOSED
from tests.node.node_kit import LIMITS, Lab
from tests.node.raw_client import RawClient, job_error
from tests.node.test_generation import PROMPT, greedy

CREDIT = 4


# All tests here speak to the same two nodes, each in sessions of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(shared_lab: Lab) -> Lab:
    """Two nodes that work 4 tokens ahead of payment."""
    limits = replace(LIMITS, payment_timeout=0.7)
    await shared_lab.start_route(credit_tokens=CREDIT, limits=limits)
    return shared_lab


async def pay(client: RawClient, tokens: int) -> None:
    for hop in range(len(client.route)):
        await client.send(hop, client.voucher(tokens))


async def test_a_job_pauses_until_it_is_paid_and_loses_no_token(strict: Lab) -> None:
    async with await strict.client() as client:
        spec = client.spec(PROMPT, 20)
        await client.open_job(spec, PROMPT, None)
        await client.start(spec)
        highest = 0

        async def settle(message: PayMsg) -> None:
            nonlocal highest
            assert message.due == cost_of_tokens(message.tokens, client.session.price)
            assert message.due > message.paid
            if message.tokens > highest:
                highest = message.tokens
                await pay(client, highest)

        outcome = await client.collect(spec, on_pay=settle)
    assert outcome.tokens == greedy(strict.model_dir, PROMPT, 20)
    assert len(outcome.pays) >= 3
    # The first pause comes once the prompt and the credit are used up.
    assert outcome.pays[0].tokens == len(PROMPT) + CREDIT
    assert outcome.pays[0].paid == 0


async def test_without_payment_the_job_ends_and_the_session_is_closed_to_new_ones(strict: Lab) -> None:
    async with await strict.client() as client:
        spec = client.spec(PROMPT, 20)
        await client.open_job(spec, PROMPT, None)
        await client.start(spec)
        with pytest.raises(ProtocolError) as caught:
            await client.collect(spec)
        assert caught.value.code == "payment-required"
        await strict.idle()
    async with await strict.client(client.session) as client:
        client.next_seq = 1
        spec = client.spec(PROMPT, 3)
        with pytest.raises(ProtocolError) as caught:
            await client.open_job(spec, PROMPT, None)
        assert caught.value.code == "payment-required"
        assert "voucher of at least" in caught.value.hint
    # The debt paid, the session works again.
    async with await strict.client(client.session) as client:
        client.next_seq = 2
        _, outcome = await client.generate(PROMPT, 3, 40)
        assert len(outcome.tokens) == 3


async def test_jobs_beside_an_unpaid_one_are_refused(strict: Lab) -> None:
    async with await strict.client() as client:
        await client.open_job(client.spec(PROMPT, 20), PROMPT, None)
        with pytest.raises(ProtocolError) as caught:
            await client.open_job(client.spec(PROMPT, 20), PROMPT, None)
        assert caught.value.code == "payment-required"


async def test_a_client_that_breaks_its_job_owes_for_it(strict: Lab) -> None:
    async with await strict.client() as client:
        spec = client.spec(PROMPT, 20)
        await client.open_job(spec, PROMPT, None)
        await client.start(spec)
        while not isinstance((await client.receive())[1], PayMsg):
            pass
        await client.start(spec)
        assert (await job_error(client)).code == "out-of-order"
        await strict.idle()
    for app in strict.apps:
        served = app.dispatcher.services.sessions.get(client.session.session_id)
        assert served is not None
        assert served.record.billed >= len(PROMPT) + CREDIT
    async with await strict.client(client.session) as client:
        client.next_seq = 1
        with pytest.raises(ProtocolError) as caught:
            await client.open_job(client.spec(PROMPT, 20), PROMPT, None)
        assert caught.value.code == "payment-required"


async def test_a_closed_session_pays_for_nothing_more(strict: Lab) -> None:
    async with await strict.client() as client:
        await client.generate(PROMPT, 3, 11)
        served = strict.apps[0].dispatcher.services.sessions.get(client.session.session_id)
        assert served is not None
        served.record = replace(served.record, status=CLOSED)
        answer = await client.expect_error(0, client.voucher(12))
        assert answer.code == "session-not-open"


async def test_strangers_cannot_end_a_job(strict: Lab) -> None:
    """Session ids are public and job numbers small: anybody can name a running job."""
    async with await strict.client() as client:
        spec = client.spec(PROMPT, 20)
        await client.open_job(spec, PROMPT, 40)
        for hop in client.route:
            signer = Signer(os.urandom(32))
            stranger = await connect(hop.endpoint)
            await handshake(stranger, Identity(client.domain, signer.address, signer))
            row = (0).to_bytes(4, "little")
            act = ActMsg(spec.job_id, 0, 0, 1, WireDtype.I32, 1, bytes(32), bytes(65), row)
            await stranger.send(act.to_frame())
            await stranger.send(AckMsg(spec.job_id, 1, 0, 1, bytes(65)).to_frame())
            answer = parse(await stranger.recv(timeout=10))
            assert isinstance(answer, ErrorMsg)
            assert answer.code == "unknown-job"
            await stranger.close()
        await client.start(spec)
        assert len((await client.collect(spec)).tokens) == 20


async def test_earlier_jobs_of_the_session_count(strict: Lab) -> None:
    async with await strict.client() as client:
        for _ in range(3):
            spec = client.spec(PROMPT, 3)
            await client.open_job(spec, PROMPT, 8 * client.next_seq)
            await client.start(spec)
            outcome = await client.collect(spec)
            assert outcome.pays == []
    served = strict.apps[0].dispatcher.services.sessions.get(client.session.session_id)
    assert served is not None
    assert served.record.billed == 3 * (len(PROMPT) + 3)
    assert served.record.cumulative == cost_of_tokens(24, client.session.price)

"""A session's signer that has code: before the opening the node refuses it, afterwards every voucher is still paid."""

from __future__ import annotations

import os

import pytest

from efedllm.chain import Chain
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from tests.node.node_kit import Lab
from tests.node.raw_client import Session
from tests.node.test_generation import PROMPT

DELEGATION = "0xef0100" + "11" * 20  # what EIP-7702 sets as the code of an account
REVERTS = "0x60006000fd"


async def give_code(chain: Chain, address: str, code: str) -> None:
    assert await chain.rpc.request("evm_setAccountCode", [address, code])
    assert await chain.rpc.request("eth_getCode", [address, "latest"]) == code


async def served_and_settled(lab: Lab, session: Session, code: str | None = None) -> int:
    """Wei that the nodes got for one job; `code`: given to the signer once it is served."""
    async with await lab.client(session) as client:
        _, outcome = await client.generate(PROMPT, 3, len(PROMPT) + 3)
        assert len(outcome.tokens) == 3
        promised = client.voucher(len(PROMPT) + 3).voucher.cumulative
    if code is not None:
        await give_code(lab.chain, session.signer.address, code)
    assert await lab.apps[0].epoch_loop.drain(30)
    settled = (await lab.chain.session(session.session_id)).settled
    assert settled == promised
    return settled


@pytest.mark.parametrize("code", [DELEGATION, REVERTS])
async def test_work_is_paid_for_when_the_signer_gets_code_later(pair: Lab, code: str) -> None:
    session = await pair.session()
    assert await served_and_settled(pair, session, code) > 0
    assert not (await pair.chain.session(session.session_id)).contract_signer


async def test_a_signer_with_code_at_the_opening_is_refused_unless_allowed(lab: Lab) -> None:
    signer = Signer(os.urandom(32))
    await give_code(lab.chain, signer.address, REVERTS)
    await lab.start_route()
    session = await lab.session(signer=signer)
    assert (await lab.chain.session(session.session_id)).contract_signer
    async with await lab.client(session) as client:
        with pytest.raises(ProtocolError) as caught:
            await client.open_job(client.spec(PROMPT, 3), PROMPT, None)
        assert caught.value.code == "contract-signer"
    for app in list(lab.apps):
        await lab.stop(app)
    await lab.start_route(allow_contract_signers=True)
    assert await served_and_settled(lab, await lab.session(signer=signer)) > 0

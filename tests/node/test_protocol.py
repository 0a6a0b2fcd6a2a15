"""What a node refuses, and that it goes on serving afterwards."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from efedllm.chain.amounts import WEI
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import RouteHop, Voucher
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from efedllm.wire import MAX_FRAME, Frame, FrameType, Identity, connect, handshake, parse, ws_url
from efedllm.wire.messages import ErrorMsg, OpenedMsg, StartMsg, VoucherMsg
from tests.node.node_kit import Lab, eventually, still_serves
from tests.node.raw_client import job_error, open_session

# All tests here speak to the same two nodes, each in sessions and jobs of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [7, 3, 90, 11, 42]


async def settled_counts(shared_pair: Lab) -> dict[str, int]:
    """How the jobs of hop 0 ended, once those of earlier tests have."""
    await shared_pair.idle()
    return await shared_pair.apps[0].store.counts()


async def test_voucher_for_another_session(shared_pair: Lab) -> None:
    other = await shared_pair.session()
    async with await shared_pair.client() as client:
        spec = client.spec(PROMPT, 4)
        wrong = client.voucher(20, other)
        error = await client.expect_error(0, client.open_msg(spec, PROMPT, 0, wrong))
        assert (error.code, error.job_id) == ("wrong-session", spec.job_id)
        assert "another session" in error.message
        error = await client.expect_error(0, client.voucher(20, other))
        assert error.code == "wrong-session"
    await still_serves(shared_pair)


async def test_another_spec_of_the_job_for_each_hop_is_committed_to_by_the_first_alone(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        spec = client.spec(PROMPT, 3)
        other = replace(spec, seed=b"\x07" * 32)
        assert other.job_id == spec.job_id
        for hop, told in enumerate((spec, other)):
            await client.send(hop, client.open_msg(told, PROMPT, hop, client.voucher(20)))
        for _ in shared_pair.apps:
            assert isinstance((await client.receive())[1], OpenedMsg)
        await client.start(spec)
        error = await job_error(client)
    assert error.code == "commit-mismatch"
    assert "another spec." in error.message
    first, second = [await app.store.receipt(spec.job_id) for app in shared_pair.apps]
    assert first is not None
    assert first.commit.spec_hash == spec.digest(shared_pair.chain.efl_domain)
    assert second is None
    await still_serves(shared_pair)


async def test_voucher_by_another_key(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        voucher = client.voucher(20).voucher
        forged = VoucherMsg(voucher, Signer(os.urandom(32)).sign(voucher.digest(*shared_pair.chain.escrow_domain)))
        spec = client.spec(PROMPT, 4)
        assert (await client.expect_error(0, client.open_msg(spec, PROMPT, 0, forged))).code == "bad-signature"
        await client.open_job(client.spec(PROMPT, 4), PROMPT, 5)
        assert (await client.expect_error(0, forged)).code == "bad-signature"
    served = shared_pair.apps[0].dispatcher.services.sessions.get(client.session.session_id)
    assert served is not None
    assert served.record.cumulative == client.voucher(5).voucher.cumulative


async def test_voucher_beyond_the_deposit_and_backwards(shared_pair: Lab) -> None:
    session = await shared_pair.session(deposit=WEI // 4)
    async with await shared_pair.client(session) as client:
        await client.open_job(client.spec(PROMPT, 4), PROMPT, 20)
        assert (await client.expect_error(0, client.voucher(10_000_000))).code == "voucher-exceeds-deposit"
        assert (await client.expect_error(0, client.voucher(19))).code == "voucher-not-monotone"
        # The same one again is no fault, and no news.
        await client.send(0, client.voucher(20))
        error = await client.expect_error(0, StartMsg(ZERO32))
        assert error.code == "unknown-job"


async def test_a_top_up_makes_larger_vouchers_good(shared_pair: Lab) -> None:
    session = await shared_pair.session(deposit=WEI // 10)
    async with await shared_pair.client(session) as client:
        await client.open_job(client.spec(PROMPT, 4), PROMPT, 5)
        tokens = 100_000
        assert (await client.expect_error(0, client.voucher(tokens))).code == "voucher-exceeds-deposit"
        await shared_pair.chain.ensure_allowance("SessionEscrow", WEI)
        await shared_pair.chain.contracts.session_escrow.deposit(WEI)
        await shared_pair.chain.contracts.session_escrow.top_up(session.key, WEI)
        await client.send(0, client.voucher(tokens))
        wanted = client.voucher(tokens).voucher.cumulative
        served = shared_pair.apps[0].dispatcher.services.sessions.get(session.session_id)
        assert served is not None

        async def taken() -> bool:
            return served.record.cumulative == wanted

        await eventually(taken, "the larger voucher is taken")


async def test_a_job_signed_by_another_key(shared_pair: Lab) -> None:
    before = await settled_counts(shared_pair)
    async with await shared_pair.client() as client:
        spec = client.spec(PROMPT, 4)
        forged = Signer(os.urandom(32)).sign(spec.digest(client.domain))
        message = client.open_msg(spec, PROMPT, 0, None, spec_signature=forged)
        assert (await client.expect_error(0, message)).code == "bad-signature"
    assert await shared_pair.apps[0].store.counts() == before
    await still_serves(shared_pair)


async def test_a_session_that_does_not_exist_or_has_expired(shared_pair: Lab) -> None:
    session = await shared_pair.session(life=30)
    unknown = replace(session, key=replace(session.key, nonce=session.key.nonce ^ 1))
    unknown = replace(unknown, session_id=unknown.key.session_id(*shared_pair.chain.escrow_domain))
    async with await shared_pair.client(unknown) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "session-not-open"
    clock = shared_pair.live.clock(shared_pair.chain)
    await clock.advance_to(session.key.expiry + 1)
    await shared_pair.refresh_clocks()
    async with await shared_pair.client(session) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "session-expired"
        assert "Open a new session" in error.hint


async def test_a_session_that_was_closed(shared_pair: Lab) -> None:
    session = await shared_pair.session()
    await shared_pair.chain.contracts.session_escrow.request_close(session.key)
    async with await shared_pair.client(session) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "session-not-open"


async def test_jobs_that_make_no_sense(shared_pair: Lab) -> None:
    before = await settled_counts(shared_pair)
    async with await shared_pair.client() as client:
        false = RouteHop(**{**client.route[1].__dict__, "signer": client.session.signer.address})
        foreign = (7, 96)
        cases: list[tuple[str, Any]] = [
            ("wrong-prompt", client.open_msg(client.spec(PROMPT, 4), [7, 3, 90, 11, 43], 0, None)),
            ("bad-token", client.open_msg(client.spec(foreign, 4), foreign, 0, None)),
            ("context-exceeded", client.open_msg(client.spec(PROMPT, 61), PROMPT, 0, None)),
            ("wrong-route", client.open_msg(client.spec(PROMPT, 4), PROMPT, 1, None)),
            ("wrong-route", client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None, route=(client.route[0], false))),
            ("wrong-session", client.open_msg(client.spec(PROMPT, 4, session_id=ZERO32), PROMPT, 0, None)),
        ]
        for code, message in cases:
            error = await client.expect_error(0, message)
            assert error.code == code
            assert error.job_id == message.job_spec.job_id
    assert await shared_pair.apps[0].store.counts() == before
    await still_serves(shared_pair)


async def test_a_job_number_is_used_once(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        spec, _ = await client.generate(PROMPT, 3, 20)
        error = await client.expect_error(0, client.open_msg(spec, PROMPT, 0, None))
        assert error.code == "job-exists"


async def test_shares_that_do_not_pay_this_node(shared_pair: Lab) -> None:
    session = await open_session(
        shared_pair.chain, shared_pair.model_id, await shared_pair.infos(), shares=(4000, 6000)
    )
    async with await shared_pair.client(session) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "price-too-low"
        assert f"{session.price * 4000 // 10_000} gwei" in error.message
        await client.send(1, client.open_msg(client.spec(PROMPT, 4), PROMPT, 1, None))


async def test_malformed_and_oversized_frames_end_the_connection_only(shared_pair: Lab) -> None:
    app = shared_pair.apps[0]
    url = ws_url(app.endpoint)
    domain = shared_pair.chain.efl_domain
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(url) as ws:
            await ws.receive()  # the node's hello
            await ws.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
            assert b"bad-frame" in await ws.receive_bytes()
            assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE
            assert ws.close_code == 1002
        async with http.ws_connect(url, max_msg_size=0) as ws:
            await ws.receive()
            # The node stops reading at the limit, so that the rest may not even be taken.
            with contextlib.suppress(OSError):
                await ws.send_bytes(bytes(MAX_FRAME + 1))
            while (last := await ws.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
            assert last.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    peer = await connect(app.endpoint)
    await handshake(peer, Identity(domain))
    await peer.send(Frame(FrameType.OPEN_JOB, b'{"session_key": 1}'))
    answer = parse(await peer.recv(5.0))
    assert isinstance(answer, ErrorMsg)
    assert answer.code == "bad-message"
    with pytest.raises(ProtocolError):
        await peer.recv(5.0)
    await peer.close()
    await still_serves(shared_pair)


async def test_another_chain_is_refused_at_the_door(shared_pair: Lab) -> None:
    peer = await connect(shared_pair.apps[0].endpoint)
    domain = replace(shared_pair.chain.efl_domain, chain_id=1)
    with pytest.raises(ProtocolError) as caught:
        await handshake(peer, Identity(domain))
    assert caught.value.code == "wrong-chain"
    await peer.close()


async def test_voucher_of_a_job_nobody_opened(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        voucher = Voucher(client.session.session_id, 1, 1, ZERO32)
        message = VoucherMsg(voucher, client.session.signer.sign(voucher.digest(*shared_pair.chain.escrow_domain)))
        assert (await client.expect_error(0, message)).code == "wrong-session"

"""What a node refuses, and that it goes on serving afterwards."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from typing import Any

import aiohttp
import pytest

from efedllm.chain.amounts import WEI
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import RouteHop, Voucher
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from efedllm.wire import MAX_FRAME, Frame, FrameType, Identity, connect, handshake, parse, ws_url
from efedllm.wire.messages import ActMsg, ErrorMsg, OpenedMsg, StartMsg, VoucherMsg
from tests.node.node_kit import Lab, eventually
from tests.node.raw_client import RawClient, job_error, open_session

PROMPT = [7, 3, 90, 11, 42]


async def still_serves(lab: Lab) -> None:
    async with await lab.client() as client:
        _, outcome = await client.generate(PROMPT, 3, 20)
    assert len(outcome.tokens) == 3


async def test_voucher_for_another_session(pair: Lab) -> None:
    other = await pair.session()
    async with await pair.client() as client:
        spec = client.spec(PROMPT, 4)
        wrong = client.voucher(20, other)
        error = await client.expect_error(0, client.open_msg(spec, PROMPT, 0, wrong))
        assert (error.code, error.job_id) == ("wrong-session", spec.job_id)
        assert "another session" in error.message
        error = await client.expect_error(0, client.voucher(20, other))
        assert error.code == "wrong-session"
    await still_serves(pair)


async def test_another_spec_of_the_job_for_each_hop_is_committed_to_by_the_first_alone(pair: Lab) -> None:
    async with await pair.client() as client:
        spec = client.spec(PROMPT, 3)
        other = replace(spec, seed=b"\x07" * 32)
        assert other.job_id == spec.job_id
        for hop, told in enumerate((spec, other)):
            await client.send(hop, client.open_msg(told, PROMPT, hop, client.voucher(20)))
        for _ in pair.apps:
            assert isinstance((await client.receive())[1], OpenedMsg)
        await client.start(spec)
        error = await job_error(client)
    assert error.code == "commit-mismatch"
    assert "another spec." in error.message
    first, second = [await app.store.receipt(spec.job_id) for app in pair.apps]
    assert first is not None
    assert first.commit.spec_hash == spec.digest(pair.chain.efl_domain)
    assert second is None
    await still_serves(pair)


async def test_voucher_by_another_key(pair: Lab) -> None:
    async with await pair.client() as client:
        voucher = client.voucher(20).voucher
        forged = VoucherMsg(voucher, Signer(os.urandom(32)).sign(voucher.digest(*pair.chain.escrow_domain)))
        spec = client.spec(PROMPT, 4)
        assert (await client.expect_error(0, client.open_msg(spec, PROMPT, 0, forged))).code == "bad-signature"
        await client.open_job(client.spec(PROMPT, 4), PROMPT, 5)
        assert (await client.expect_error(0, forged)).code == "bad-signature"
    served = pair.apps[0].dispatcher.services.sessions.get(client.session.session_id)
    assert served is not None
    assert served.record.cumulative == client.voucher(5).voucher.cumulative


async def test_voucher_beyond_the_deposit_and_backwards(pair: Lab) -> None:
    session = await pair.session(deposit=WEI // 4)
    async with await pair.client(session) as client:
        await client.open_job(client.spec(PROMPT, 4), PROMPT, 20)
        assert (await client.expect_error(0, client.voucher(10_000_000))).code == "voucher-exceeds-deposit"
        assert (await client.expect_error(0, client.voucher(19))).code == "voucher-not-monotone"
        # The same one again is no fault, and no news.
        await client.send(0, client.voucher(20))
        error = await client.expect_error(0, StartMsg(ZERO32))
        assert error.code == "unknown-job"


async def test_a_top_up_makes_larger_vouchers_good(pair: Lab) -> None:
    session = await pair.session(deposit=WEI // 10)
    async with await pair.client(session) as client:
        await client.open_job(client.spec(PROMPT, 4), PROMPT, 5)
        tokens = 100_000
        assert (await client.expect_error(0, client.voucher(tokens))).code == "voucher-exceeds-deposit"
        await pair.chain.ensure_allowance("SessionEscrow", WEI)
        await pair.chain.contracts.session_escrow.deposit(WEI)
        await pair.chain.contracts.session_escrow.top_up(session.key, WEI)
        await client.send(0, client.voucher(tokens))
        wanted = client.voucher(tokens).voucher.cumulative
        served = pair.apps[0].dispatcher.services.sessions.get(session.session_id)
        assert served is not None

        async def taken() -> bool:
            return served.record.cumulative == wanted

        await eventually(taken, "the larger voucher is taken")


async def test_a_job_signed_by_another_key(pair: Lab) -> None:
    async with await pair.client() as client:
        spec = client.spec(PROMPT, 4)
        forged = Signer(os.urandom(32)).sign(spec.digest(client.domain))
        message = client.open_msg(spec, PROMPT, 0, None, spec_signature=forged)
        assert (await client.expect_error(0, message)).code == "bad-signature"
    assert await pair.apps[0].store.counts() == {}
    await still_serves(pair)


async def test_a_session_that_does_not_exist_or_has_expired(pair: Lab) -> None:
    session = await pair.session(life=30)
    unknown = replace(session, key=replace(session.key, nonce=session.key.nonce ^ 1))
    unknown = replace(unknown, session_id=unknown.key.session_id(*pair.chain.escrow_domain))
    async with await pair.client(unknown) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "session-not-open"
    clock = pair.live.clock(pair.chain)
    await clock.advance_to(session.key.expiry + 1)
    await pair.refresh_clocks()
    async with await pair.client(session) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "session-expired"
        assert "Open a new session" in error.hint


async def test_a_session_that_was_closed(pair: Lab) -> None:
    session = await pair.session()
    await pair.chain.contracts.session_escrow.request_close(session.key)
    async with await pair.client(session) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "session-not-open"


async def test_jobs_that_make_no_sense(pair: Lab) -> None:
    async with await pair.client() as client:
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
    assert await pair.apps[0].store.counts() == {}
    await still_serves(pair)


async def test_a_job_number_is_used_once(pair: Lab) -> None:
    async with await pair.client() as client:
        spec, _ = await client.generate(PROMPT, 3, 20)
        error = await client.expect_error(0, client.open_msg(spec, PROMPT, 0, None))
        assert error.code == "job-exists"


async def test_shares_that_do_not_pay_this_node(pair: Lab) -> None:
    session = await open_session(pair.chain, pair.model_id, await pair.infos(), shares=(4000, 6000))
    async with await pair.client(session) as client:
        error = await client.expect_error(0, client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None))
        assert error.code == "price-too-low"
        await client.send(1, client.open_msg(client.spec(PROMPT, 4), PROMPT, 1, None))


async def test_malformed_and_oversized_frames_end_the_connection_only(pair: Lab) -> None:
    app = pair.apps[0]
    url = ws_url(app.endpoint)
    domain = pair.chain.efl_domain
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
    await still_serves(pair)


async def test_another_chain_is_refused_at_the_door(pair: Lab) -> None:
    peer = await connect(pair.apps[0].endpoint)
    domain = replace(pair.chain.efl_domain, chain_id=1)
    with pytest.raises(ProtocolError) as caught:
        await handshake(peer, Identity(domain))
    assert caught.value.code == "wrong-chain"
    await peer.close()


class Meddler:
    """Changes the first decode row that hop 0 sends, each time it is armed with a `change`."""

    def __init__(self, lab: Lab) -> None:
        self.change: Any = None
        neighbours = lab.apps[0].dispatcher.neighbours
        reach = neighbours.reach

        async def meddling(hop: RouteHop) -> Any:
            link = await reach(hop)
            send = link.send

            async def changed(message: Any) -> None:
                if isinstance(message, ActMsg) and message.from_pos > 0 and self.change is not None:
                    message, self.change = self.change(message), None
                await send(message)

            link.send = changed  # type: ignore[method-assign]
            return link

        neighbours.reach = meddling  # type: ignore[method-assign]


BREACHES: tuple[tuple[str, Any], ...] = (
    ("out-of-order", lambda m: replace(m, from_pos=m.from_pos + 1)),
    ("broken-chain", lambda m: replace(m, prev=ZERO32)),
    ("bad-signature", lambda m: replace(m, payload=bytes(len(m.payload)))),
    ("nonfinite", lambda m: replace(m, payload=b"\xff" * len(m.payload))),
    ("bad-shape", lambda m: replace(m, dtype=WireDtype.BF16, dim=m.dim * 2)),
)


async def aborted(lab: Lab, count: int) -> bool:
    return [await app.store.counts() for app in lab.apps] == [{"aborted": count}] * len(lab.apps)


async def test_a_node_that_breaks_the_stream_is_named(pair: Lab) -> None:
    meddler = Meddler(pair)
    async with await pair.client() as client:
        for count, (code, change) in enumerate(BREACHES, start=1):
            meddler.change = change
            spec = client.spec(PROMPT, 8)
            await client.open_job(spec, PROMPT, 100)
            await client.start(spec)
            with pytest.raises(ProtocolError) as caught:
                await client.collect(spec)
            assert caught.value.code == code
            assert pair.apps[0].address in caught.value.message
            # Every node reports the end of a job to its client.
            while (await job_error(client)).code != code:
                pass
            await eventually(partial(aborted, pair, count), "both nodes give up")
    await still_serves(pair)


async def test_a_neighbour_that_cannot_be_reached(pair: Lab) -> None:
    session = await pair.session()
    infos = await pair.infos()
    await pair.stop(pair.apps[1])
    client = RawClient(pair.chain, session, infos)
    peer = await connect(infos[0].endpoint)
    await handshake(peer, Identity(client.domain))
    await peer.send(client.open_msg(client.spec(PROMPT, 4), PROMPT, 0, None).to_frame())
    answer = parse(await peer.recv(10.0))
    assert isinstance(answer, ErrorMsg)
    assert answer.code == "next-unreachable"
    assert infos[1].address in answer.message
    await peer.close()


async def test_a_lost_neighbour_ends_the_job_with_its_name(pair: Lab) -> None:
    async with await pair.client() as client:
        spec = client.spec(PROMPT, 50)
        await client.open_job(spec, PROMPT, 60)
        await client.start(spec)
        await client.receive()
        lost = pair.apps[1]
        await pair.stop(lost)
        error = await job_error(client)
    assert error.code == "peer-lost"
    assert lost.address in error.message


async def test_voucher_of_a_job_nobody_opened(pair: Lab) -> None:
    async with await pair.client() as client:
        voucher = Voucher(client.session.session_id, 1, 1, ZERO32)
        message = VoucherMsg(voucher, client.session.signer.sign(voucher.digest(*pair.chain.escrow_domain)))
        assert (await client.expect_error(0, message)).code == "wrong-session"

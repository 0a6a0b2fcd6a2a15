"""A node of a running route stops: who notices, what is said, what the process that follows still knows."""

from __future__ import annotations

from dataclasses import replace

from efedllm.chain.amounts import cost_of_tokens
from efedllm.wire import Identity, connect, handshake, parse
from efedllm.wire.messages import ErrorMsg
from tests.node.node_kit import Lab
from tests.node.raw_client import RawClient, job_error
from tests.node.test_generation import PROMPT


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


async def test_vouchers_survive_the_process(pair: Lab) -> None:
    async with await pair.client() as client:
        await client.generate(PROMPT, 3, 11)
    app = pair.apps[0]
    config = app.config
    await pair.stop(app)
    again = await pair.launch(replace(config, listen_port=int(app.endpoint.rsplit(":", 1)[1])))
    served = again.dispatcher.services.sessions.get(client.session.session_id)
    assert served is not None
    assert served.record.cumulative == cost_of_tokens(11, client.session.price)
    assert served.record.voucher is not None
    assert served.record.billed == len(PROMPT) + 3

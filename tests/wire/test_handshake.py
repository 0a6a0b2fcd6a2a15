"""Reaching a node and learning who answers, over real sockets."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.messages import Hello
from efedllm.errors import EfedError, ProtocolError
from efedllm.wire import (
    Identity,
    Peer,
    Remote,
    connect,
    handshake,
    ws_url,
)
from efedllm.wire.messages import PROTOCOL_VERSION, HelloMsg, WelcomeMsg
from tests.wire.serving import (
    DOMAIN,
    FAST,
    NODE,
    OTHER,
    SERVER,
    SIGNER,
    Handler,
    ignore,
    serving,
    start,
)

# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/v1/ws"),
        ("http://127.0.0.1:8000/", "ws://127.0.0.1:8000/v1/ws"),
        ("https://node.example/base", "wss://node.example/base/v1/ws"),
        ("ws://[::1]:5", "ws://[::1]:5/v1/ws"),
        ("wss://node.example/own/path", "wss://node.example/own/path"),
    ],
)
def test_endpoints_become_urls(endpoint: str, url: str) -> None:
    assert ws_url(endpoint) == url


@pytest.mark.parametrize(
    "endpoint", ["", "127.0.0.1:80", "ftp://x", "http://", "http://x:99999", "http://[::1", "file:///x"]
)
async def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        await connect(endpoint)
    assert caught.value.code == "bad-endpoint"


async def test_nobody_there() -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(EfedError) as caught:
        await connect(f"http://127.0.0.1:{port}")
    assert (caught.value.code, caught.value.hint) == ("unreachable", "Is it running?")


async def test_somebody_who_never_answers() -> None:
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _r, w: writers.append(w), "127.0.0.1", 0)
    try:
        with pytest.raises(ProtocolError) as caught:
            await connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.2)
        assert caught.value.code == "unreachable"
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


async def test_an_http_server_that_is_no_node() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(ProtocolError) as caught:
            await connect(f"http://127.0.0.1:{runner.addresses[0][1]}")
        assert caught.value.code == "unreachable"
    finally:
        await runner.cleanup()


# ---------------------------------------------------------------------------------------------------------


async def test_a_client_learns_which_node_it_reached_and_the_node_that_it_is_a_client() -> None:
    seen: list[Remote] = []

    async def greet(peer: Peer) -> None:
        seen.append(await handshake(peer, SERVER))
        await peer.wait_closed()

    async with serving(greet) as url, await connect(url, limits=FAST) as peer:
        remote = await handshake(peer, Identity(DOMAIN), expect_node=NODE.lower(), expect_signer=SIGNER.address)
        assert remote == Remote("node", NODE, SIGNER.address)
    assert seen == [Remote("client", None, None)]


async def test_nodes_prove_themselves_to_each_other() -> None:
    seen: list[Remote] = []

    async def greet(peer: Peer) -> None:
        seen.append(await handshake(peer, SERVER))
        await peer.wait_closed()

    async with serving(greet) as url, await connect(url, limits=FAST) as peer:
        assert (await handshake(peer, Identity(DOMAIN, OTHER.address, OTHER))).node == NODE
    assert seen == [Remote("node", OTHER.address, OTHER.address)]


async def refused(identity: Identity, greet: Handler, **expected: str) -> str:
    """Code with which a handshake against `greet` fails on our side."""
    async with serving(greet) as url:
        peer = await connect(url, limits=FAST)
        with pytest.raises(ProtocolError) as caught:
            await handshake(peer, identity, **expected)  # type: ignore[arg-type]
        assert peer.closed
        return caught.value.code


async def plain(peer: Peer) -> None:
    """A node's handshake; the other side may leave."""
    try:
        await handshake(peer, SERVER)
        await peer.wait_closed()
    except ProtocolError:
        pass


async def test_another_chain_is_told_apart_on_both_sides() -> None:
    errors: list[str] = []

    async def greet(peer: Peer) -> None:
        try:
            await handshake(peer, SERVER)
        except ProtocolError as error:
            errors.append(error.code)

    assert await refused(Identity(Domain(1, DOMAIN.contract)), greet) == "wrong-chain"
    assert errors == ["wrong-chain"]


async def test_another_node_than_expected() -> None:
    assert await refused(Identity(DOMAIN), plain, expect_node=OTHER.address) == "wrong-node"
    assert await refused(Identity(DOMAIN), plain, expect_signer=OTHER.address) == "wrong-node"


async def test_another_deployment_on_the_same_chain_does_not_verify() -> None:
    assert await refused(Identity(Domain(DOMAIN.chain_id, NODE)), plain) == "bad-signature"


async def test_an_impostor_cannot_sign_for_the_registered_signer() -> None:
    async def impostor(peer: Peer) -> None:
        await peer.send(HelloMsg(DOMAIN.chain_id, "node", NODE, bytes(32)).to_frame())
        theirs = HelloMsg.from_frame(await peer.recv(10))
        signature = OTHER.sign(Hello(NODE, theirs.challenge).digest(DOMAIN))
        await peer.send(WelcomeMsg(DOMAIN.chain_id, NODE, SIGNER.address, signature).to_frame())
        await peer.wait_closed()

    assert await refused(Identity(DOMAIN), impostor, expect_node=NODE, expect_signer=SIGNER.address) == "bad-signature"


async def test_a_node_that_proves_to_be_another_than_it_said() -> None:
    async def two_faced(peer: Peer) -> None:
        await peer.send(HelloMsg(DOMAIN.chain_id, "node", OTHER.address, bytes(32)).to_frame())
        theirs = HelloMsg.from_frame(await peer.recv(10))
        signature = SIGNER.sign(Hello(NODE, theirs.challenge).digest(DOMAIN))
        await peer.send(WelcomeMsg(DOMAIN.chain_id, NODE, SIGNER.address, signature).to_frame())
        await peer.wait_closed()

    assert await refused(Identity(DOMAIN), two_faced) == "wrong-node"


async def test_a_recorded_answer_does_not_fit_a_new_challenge() -> None:
    async def replay(peer: Peer) -> None:
        await peer.send(HelloMsg(DOMAIN.chain_id, "node", NODE, bytes(32)).to_frame())
        old = SIGNER.sign(Hello(NODE, b"\x07" * 32).digest(DOMAIN))
        await peer.send(WelcomeMsg(DOMAIN.chain_id, NODE, SIGNER.address, old).to_frame())
        await peer.wait_closed()

    assert await refused(Identity(DOMAIN), replay) == "bad-signature"


async def test_another_protocol_version() -> None:
    async def newer(peer: Peer) -> None:
        hello = HelloMsg(DOMAIN.chain_id, "node", NODE, bytes(32), protocol=PROTOCOL_VERSION + 1)
        await peer.send(hello.to_frame())
        await peer.wait_closed()

    assert await refused(Identity(DOMAIN), newer) == "wrong-version"


async def test_a_client_where_a_node_was_expected() -> None:
    async def client(peer: Peer) -> None:
        await peer.send(HelloMsg(DOMAIN.chain_id, "client", None, bytes(32)).to_frame())
        await peer.wait_closed()

    assert await refused(Identity(DOMAIN), client, expect_node=NODE) == "wrong-node"


async def test_something_else_than_hello() -> None:
    async def rude(peer: Peer) -> None:
        await peer.send(start(1))
        await peer.wait_closed()

    assert await refused(Identity(DOMAIN), rude) == "bad-frame"


async def test_the_other_sides_error_is_passed_on() -> None:
    async def busy(peer: Peer) -> None:
        await peer.fail(ProtocolError("queue-full", "The node is busy.", "Try another one."))

    assert await refused(Identity(DOMAIN), busy) == "queue-full"


async def test_silence() -> None:
    assert await refused(Identity(DOMAIN), ignore, timeout=0.1) == "timeout"  # type: ignore[arg-type]

"""Peer over a real aiohttp server on localhost."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from efedllm.errors import ModelError, ProtocolError
from efedllm.wire import (
    MAX_FRAME,
    Frame,
    FrameType,
    Peer,
    PeerLimits,
    connect,
    parse,
    ws_url,
)
from efedllm.wire.frames import ACT_BODY_BYTES, decode
from efedllm.wire.messages import ErrorMsg
from efedllm.wire.queues import BoundedQueue
from tests.wire.serving import (
    FAST,
    big,
    echo,
    ignore,
    send_all,
    serving,
    start,
    until,
)


async def test_frames_arrive_whole_in_order_and_are_counted() -> None:
    async with serving(echo) as url, await connect(url, limits=FAST) as peer:
        frames = [start(i) for i in range(300)] + [big(1 << 20)]
        sender = asyncio.create_task(send_all(peer, frames))
        assert [await peer.recv(10) for _ in frames] == frames
        await sender
        for counts, total in (
            (peer.stats.sent, peer.stats.bytes_sent),
            (peer.stats.received, peer.stats.bytes_received),
        ):
            assert {k: (c.frames, c.bytes) for k, c in counts.items()} == {
                FrameType.START: (300, sum(f.size for f in frames[:300])),
                FrameType.ACT: (1, frames[300].size),
            }
            assert total == sum(f.size for f in frames)


async def test_the_largest_frame_passes() -> None:
    room = MAX_FRAME - 16 - ACT_BODY_BYTES
    frame = Frame(FrameType.ACT, bytes(ACT_BODY_BYTES), bytes(room))
    async with serving(echo) as url, await connect(url, limits=FAST) as peer:
        await peer.send(frame)
        assert await peer.recv(20) == frame


async def test_a_graceful_close_delivers_what_was_sent() -> None:
    got: list[Frame] = []

    async def collect(peer: Peer) -> None:
        async for frame in peer:
            got.append(frame)

    async with serving(collect) as url:
        peer = await connect(url, limits=FAST)
        frames = [start(i) for i in range(50)]
        await send_all(peer, frames)
        await peer.close()
        await peer.close()
        assert (peer.closed, peer.close_code) == (True, 1000)
        await until(lambda: len(got) == 50)
        assert got == frames
        with pytest.raises(ProtocolError) as caught:
            await peer.send(start(0))
        assert caught.value.code == "closed"
        with pytest.raises(ProtocolError) as caught:
            await peer.recv()
        assert caught.value.code == "closed"


async def test_frames_sent_before_the_other_side_closed_are_still_read() -> None:
    async def say_and_go(peer: Peer) -> None:
        await send_all(peer, [start(1), start(2)])

    async with serving(say_and_go) as url:
        peer = await connect(url, limits=FAST)
        await peer.wait_closed()
        assert [await peer.recv(), await peer.recv()] == [start(1), start(2)]
        with pytest.raises(ProtocolError) as caught:
            await peer.recv()
        assert caught.value.code == "closed"
        assert [f async for f in peer] == []


async def test_recv_times_out_and_stays_usable() -> None:
    async with serving(echo) as url, await connect(url, limits=FAST) as peer:
        with pytest.raises(ProtocolError) as caught:
            await peer.recv(0.01)
        assert caught.value.code == "timeout"
        await peer.send(start(5))
        assert await peer.recv(10) == start(5)


async def test_a_slow_reader_stops_the_sender() -> None:
    """Back-pressure: what is sent and not read stays within both sides' bounds and the kernel's buffers."""
    release = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await release.wait()
        for _ in range(total):
            await peer.recv(20)
        await peer.send(start(0))

    limits = PeerLimits(out_frames=4, out_bytes=1 << 22, in_frames=4, in_bytes=1 << 22, close_timeout=1.0)
    total, size = 60, 1 << 20
    async with serving(slow, limits) as url:
        peer = await connect(url, limits=limits)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(total):
                await peer.send(big(size))
                sent += 1

        sender = asyncio.create_task(send())
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.2)
        assert 4 <= sent < total
        assert not sender.done()
        release.set()
        await asyncio.wait_for(sender, 20)
        assert await peer.recv(20) == start(0)
        await peer.close()


async def test_a_reader_that_never_takes_bytes_is_given_up() -> None:
    done = asyncio.Event()

    async def deaf(_peer: Peer) -> None:
        await done.wait()

    small = PeerLimits(in_frames=1, in_bytes=1, out_frames=2, close_timeout=0.3, write_timeout=0.3)
    async with serving(deaf, small) as url:
        peer = await connect(url, limits=small)
        with pytest.raises(ProtocolError) as caught:
            await asyncio.wait_for(send_all(peer, [big(4 << 20)] * 1000), 20)
        assert caught.value.code == "stalled"
        await peer.close()
        done.set()


@pytest.mark.parametrize(
    ("message", "code", "closed"),
    [
        (b"garbage that is no frame", "bad-frame", 1002),
        (b"", "bad-frame", 1002),
        ("text", "bad-frame", 1002),
        (b"EFL1" + bytes([5, 0, 0, 0]) + b"\xff" * 8, "oversized", 1009),
    ],
)
async def test_a_malformed_message_ends_the_connection_with_a_reason(
    message: bytes | str, code: str, closed: int
) -> None:
    errors: list[ProtocolError] = []

    async def judge(peer: Peer) -> None:
        try:
            await peer.recv(10)
        except ProtocolError as error:
            errors.append(error)

    async with serving(judge) as url, aiohttp.ClientSession() as session:
        async with session.ws_connect(ws_url(url)) as ws:
            await (ws.send_str(message) if isinstance(message, str) else ws.send_bytes(message))
            told = await ws.receive(10)
            assert told.type is aiohttp.WSMsgType.BINARY
            report = parse(decode(told.data))
            assert isinstance(report, ErrorMsg)
            assert report.code == code
            assert (await ws.receive(10)).type is aiohttp.WSMsgType.CLOSE
            assert ws.close_code == closed
        await until(lambda: bool(errors))
        assert errors[0].code == code


async def test_a_message_above_the_limit_is_refused_from_its_header_alone() -> None:
    errors: list[ProtocolError] = []

    async def judge(peer: Peer) -> None:
        try:
            await peer.recv(10)
        except ProtocolError as error:
            errors.append(error)

    async with serving(judge) as url:
        peer = await connect(url, limits=FAST)
        # A masked binary WebSocket header that announces one byte too many, and no byte of it.
        transport = peer.socket._writer.transport  # type: ignore[union-attr]
        transport.write(b"\x82\xff" + (MAX_FRAME + 1).to_bytes(8, "big") + bytes(4))
        with pytest.raises(ProtocolError) as caught:
            await peer.recv(10)
        assert caught.value.code == "closed-by-peer"
        assert peer.close_code == 1009
        await until(lambda: bool(errors))
        assert errors[0].code == "oversized"


async def test_a_frame_nobody_may_send_is_refused_at_the_sender_and_hurts_nothing() -> None:
    async with serving(echo) as url, await connect(url, limits=FAST) as peer:
        for bad, code in (
            (Frame(FrameType.START, b"{}" + bytes(MAX_FRAME)), "oversized"),
            (Frame(FrameType.ACT, b"short"), "bad-frame"),
        ):
            with pytest.raises(ProtocolError) as caught:
                await peer.send(bad)
            assert caught.value.code == code
        await peer.send(start(1))
        assert await peer.recv(10) == start(1)


async def test_a_lost_connection_wakes_the_reader_and_the_writer() -> None:
    peers: list[Peer] = []

    async def cut(peer: Peer) -> None:
        peers.append(peer)
        await peer.recv(10)
        transport = peer.response._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.abort()
        with pytest.raises(ProtocolError) as caught:
            await peer.recv(10)
        assert caught.value.code == "connection-lost"

    async with serving(cut) as url:
        peer = await connect(url, limits=FAST)
        waiting = asyncio.create_task(peer.recv())
        await peer.send(start(1))
        with pytest.raises(ProtocolError) as caught:
            await asyncio.wait_for(waiting, 10)
        assert caught.value.code == "connection-lost"
        with pytest.raises(ProtocolError) as caught:
            await peer.send(start(1))
        assert caught.value.code == "connection-lost"
        with pytest.raises(ProtocolError) as caught:
            async for _ in peer:
                pass
        assert caught.value.code == "connection-lost"
        await peer.close()


async def test_a_silent_peer_is_noticed_by_the_heartbeat() -> None:
    """A TCP server that upgrades and then never answers a ping."""
    writers: list[asyncio.StreamWriter] = []

    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        import base64
        import hashlib

        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
        )
        answer = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n"
        )
        await writer.drain()

    server = await asyncio.start_server(upgrade, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        peer = await connect(f"http://127.0.0.1:{port}", limits=PeerLimits(heartbeat=0.2, close_timeout=0.2))
        with pytest.raises(ProtocolError) as caught:
            await peer.recv(10)
        assert caught.value.code == "connection-lost"
        await peer.close()
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


async def test_fail_tells_the_other_side_why() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.fail(
            ModelError("no-such-model", "This node serves another model.", "Pick another route."), bytes(32)
        )

    async with serving(refuse) as url:
        peer = await connect(url, limits=FAST)
        report = parse(await peer.recv(10))
        assert report == ErrorMsg("no-such-model", "This node serves another model.", "Pick another route.", bytes(32))
        with pytest.raises(ProtocolError) as caught:
            await peer.recv(10)
        assert caught.value.code == "closed-by-peer"
        assert peer.close_code == 1002
        await peer.close()


async def test_closing_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with serving(echo) as url:
        for _ in range(3):
            peer = await connect(url, limits=FAST)
            await peer.send(start(1))
            await peer.close()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_cancelling_a_close_still_releases_the_connection() -> None:
    before = asyncio.all_tasks()
    async with serving(ignore) as url:
        peer = await connect(url, limits=FAST)
        closing = asyncio.create_task(peer.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        await asyncio.wait_for(peer.wait_closed(), 10)
        assert peer.closed
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_shared_session_is_not_closed_with_the_peer() -> None:
    async with serving(echo) as url, aiohttp.ClientSession() as session:
        for i in range(2):
            async with await connect(url, session=session, limits=FAST) as peer:
                await peer.send(start(i))
                assert await peer.recv(10) == start(i)
        assert not session.closed


# -------------------------------------------------------------------------------------------------------------


async def test_the_queue_is_bounded_by_items_and_bytes_and_always_takes_one() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, 10)
    assert await queue.put(1, 100)
    blocked = asyncio.create_task(queue.put(2, 1))
    await asyncio.sleep(0.01)
    assert not blocked.done()
    assert await queue.peek() == await queue.get() == 1
    assert await blocked
    assert await queue.put(3, 9)
    blocked = asyncio.create_task(queue.put(4, 0))
    await asyncio.sleep(0.01)
    assert not blocked.done()
    assert queue.bytes == 10
    await queue.close()
    assert not await blocked
    assert [await queue.get(), await queue.get(), await queue.get(), await queue.peek()] == [2, 3, None, None]
    assert (len(queue), queue.bytes) == (0, 0)

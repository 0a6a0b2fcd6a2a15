"""A real aiohttp server on localhost whose connections are peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.signing import Signer
from efedllm.wire import (
    WS_PATH,
    Frame,
    Identity,
    Peer,
    PeerLimits,
    accept,
)
from efedllm.wire.messages import ActMsg, StartMsg

DOMAIN = Domain(31337, "0x" + "11" * 20)
SIGNER = Signer(b"\x01" * 32)
NODE = Signer(b"\x02" * 32).address
OTHER = Signer(b"\x03" * 32)
SERVER = Identity(DOMAIN, NODE, SIGNER)
FAST = PeerLimits(close_timeout=1.0)

Handler = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, limits: PeerLimits = FAST) -> AsyncIterator[str]:
    """A server that hands every connection to `handler`; yields its endpoint. Errors of handlers reach the test."""
    failures: list[BaseException] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        peer = await accept(request, limits=limits)
        try:
            await handler(peer)
        except Exception as error:
            failures.append(error)
            raise
        finally:
            await peer.close()
        return peer.response

    app = web.Application()
    app.router.add_get(WS_PATH, handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
    if failures:
        raise failures[0]


def start(i: int) -> Frame:
    return StartMsg(i.to_bytes(32, "big")).to_frame()


def big(size: int) -> Frame:
    return ActMsg(bytes(32), 1, 0, size // 4, WireDtype.F32, 1, bytes(32), bytes(65), bytes(size)).to_frame()


async def echo(peer: Peer) -> None:
    async for frame in peer:
        await peer.send(frame)


async def ignore(peer: Peer) -> None:
    await peer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (the condition is in another party's hands)
            await asyncio.sleep(0.01)


async def send_all(peer: Peer, frames: list[Frame]) -> None:
    for frame in frames:
        await peer.send(frame)

"""One WebSocket between two parties of the network, as a stream of frames in each direction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from efedllm.errors import EfedError, ProtocolError
from efedllm.wire.frames import MAX_FRAME, Frame, FrameType, check_sizes, decode, encode
from efedllm.wire.messages import ErrorMsg
from efedllm.wire.queues import BoundedQueue

WS_PATH: Final = "/v1/ws"
_GRACEFUL: Final = (WSCloseCode.OK, WSCloseCode.GOING_AWAY)
# aiohttp refuses a message of max_msg_size bytes itself.
_MAX_MESSAGE: Final = MAX_FRAME + 1

Socket = aiohttp.ClientWebSocketResponse[Any] | web.WebSocketResponse[Any]


@dataclass(frozen=True)
class PeerLimits:
    """Bounds of one connection. Times in seconds."""

    out_frames: int = 256
    out_bytes: int = 2 * MAX_FRAME
    in_frames: int = 256
    in_bytes: int = 2 * MAX_FRAME
    write_timeout: float = 30.0
    """How long the other side may refuse to take bytes before the connection is given up."""
    close_timeout: float = 5.0
    """How long a graceful close waits for queued frames and for the other side's answer."""
    heartbeat: float = 20.0
    """Interval of pings; without any answer for half of it the connection is lost."""


@dataclass
class Count:
    """Frames and bytes (header included) of one frame type in one direction."""

    frames: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.frames += 1
        self.bytes += size


@dataclass
class PeerStats:
    """What went over a connection, by frame type."""

    sent: dict[FrameType, Count] = field(default_factory=dict)
    received: dict[FrameType, Count] = field(default_factory=dict)

    @property
    def bytes_sent(self) -> int:
        """All frame bytes sent."""
        return sum(count.bytes for count in self.sent.values())

    @property
    def bytes_received(self) -> int:
        """All frame bytes received."""
        return sum(count.bytes for count in self.received.values())


class Peer:
    """Frames over an aiohttp WebSocket, of either side. Must be made inside a running event loop.

    Two tasks pump frames between the socket and bounded queues: `send` waits while the other side is slow
    (back-pressure), and a reader that lags stops the socket from being read. Close codes: 1000 and 1001 graceful,
    1002 the other side broke the protocol, 1009 a message was too large.
    """

    def __init__(
        self,
        ws: Socket,
        *,
        name: str = "the other side",
        limits: PeerLimits | None = None,
        session: aiohttp.ClientSession | None = None,
        stats: PeerStats | None = None,
    ) -> None:
        self.name = name
        self.stats = PeerStats() if stats is None else stats
        self._ws = ws
        self._limits = limits or PeerLimits()
        self._session = session
        self._outgoing: BoundedQueue[Frame] = BoundedQueue(self._limits.out_frames, self._limits.out_bytes)
        self._incoming: BoundedQueue[Frame] = BoundedQueue(self._limits.in_frames, self._limits.in_bytes)
        self._error: ProtocolError | None = None
        self._closing = False
        self._ended = asyncio.Event()
        self._writer = asyncio.create_task(self._write(), name=f"write to {name}")
        self._reader = asyncio.create_task(self._read(), name=f"read from {name}")

    @property
    def socket(self) -> Socket:
        """The WebSocket underneath."""
        return self._ws

    @property
    def response(self) -> web.WebSocketResponse[Any]:
        """What an aiohttp handler returns when it is done. TypeError on the connecting side."""
        if not isinstance(self._ws, web.WebSocketResponse):
            raise TypeError("only the accepting side has a response")
        return self._ws

    @property
    def closed(self) -> bool:
        """Whether no further frame can be sent."""
        return self._closing or self._error is not None

    @property
    def close_code(self) -> int | None:
        """WebSocket close code, once closed."""
        return self._ws.close_code

    @property
    def error(self) -> ProtocolError | None:
        """Why the connection ended; None while open and after a graceful end on our side."""
        return self._error

    async def wait_closed(self) -> None:
        """Return once the connection has ended, for whatever reason."""
        await self._ended.wait()

    async def send(self, frame: Frame) -> None:
        """Queue `frame`; waits while the queue is full.

        Raises ProtocolError: "oversized" or "bad-frame" for a frame nobody may send, "closed" (or why it ended)
        afterwards.
        """
        check_sizes(frame)
        if self.closed or not await self._outgoing.put(frame, frame.size):
            raise self._reason()

    async def recv(self, timeout: float | None = None) -> Frame:  # noqa: ASYNC109  (the error names the peer)
        """The next frame, in order; frames that arrived before the end are still delivered.

        Raises ProtocolError: "closed" after a graceful end, "connection-lost", "bad-frame", "oversized", or "timeout"
        after `timeout` seconds (the connection stays usable then).
        """
        try:
            async with asyncio.timeout(timeout):
                frame = await self._incoming.get()
        except TimeoutError:
            raise ProtocolError("timeout", f"{self.name} sent nothing for {timeout} s.", "Try again.") from None
        if frame is None:
            raise self._reason()
        return frame

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Frames until a graceful end; any other end raises as `recv` does."""
        while True:
            frame = await self._incoming.get()
            if frame is not None:
                yield frame
            elif self._error is None or self._error.code == "closed":
                return
            else:
                raise self._error

    async def fail(self, error: EfedError, job_id: bytes | None = None) -> None:
        """Tell the other side in an ERROR frame, then close: 1009 for "oversized", else 1002."""
        await self._end(_as_protocol(error), ErrorMsg.of(error, job_id).to_frame())

    async def close(self, code: int = WSCloseCode.OK, message: str = "") -> None:
        """Send what is queued, say goodbye and release everything. Safe to call twice and from any task."""
        if not self._closing:
            self._closing = True
            try:
                await self._outgoing.close()
                await asyncio.wait({self._writer}, timeout=self._limits.close_timeout)
            finally:
                await self._shut(code, message)
        await self._ended.wait()

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def _reason(self) -> ProtocolError:
        return self._error or ProtocolError("closed", f"The connection to {self.name} is closed.", "Connect again.")

    async def _end(self, error: ProtocolError, farewell: Frame | None = None) -> None:
        """End because of `error`, at once: nothing more is read, what is queued is dropped except the farewell."""
        if self._closing:
            await self._ended.wait()
            return
        self._closing = True
        self._error = error
        await self._outgoing.close(discard=True)
        code = WSCloseCode.MESSAGE_TOO_BIG if error.code == "oversized" else WSCloseCode.PROTOCOL_ERROR
        if asyncio.current_task() is not self._writer:
            # A frame half written must be finished or given up before another may follow it.
            await asyncio.wait({self._writer}, timeout=self._limits.close_timeout)
            if farewell is not None and self._writer.done():
                await self._transmit(farewell)
        await self._shut(code, error.code)

    async def _shut(self, code: int, message: str) -> None:
        try:
            async with asyncio.timeout(self._limits.close_timeout):
                # A close frame carries at most 123 bytes of reason.
                await self._ws.close(code=code, message=message.encode()[:120])
        except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError):
            # The socket is already gone, which is what closing wants.
            pass
        finally:
            await self._release()

    async def _release(self) -> None:
        self._closing = True
        await self._outgoing.close(discard=True)
        await self._incoming.close()
        current = asyncio.current_task()
        for task in (self._writer, self._reader):
            if task is not current:
                task.cancel()
        if self._session is not None:
            await self._session.close()
        self._ended.set()

    async def _transmit(self, frame: Frame) -> ProtocolError | None:
        try:
            async with asyncio.timeout(self._limits.write_timeout):
                await self._ws.send_bytes(encode(frame))
        except TimeoutError:
            return ProtocolError("stalled", f"{self.name} took no bytes for {self._limits.write_timeout} s.")
        except (OSError, RuntimeError, aiohttp.ClientError):
            return ProtocolError("connection-lost", f"The connection to {self.name} broke.", "Connect again.")
        self.stats.sent.setdefault(frame.type, Count()).add(frame.size)
        return None

    async def _write(self) -> None:
        while (frame := await self._outgoing.peek()) is not None:
            failure = await self._transmit(frame)
            if failure is not None:
                await self._end(failure)
                return
            # Only now: the bytes of a frame being written still count against the bound.
            await self._outgoing.get()

    async def _read(self) -> None:
        try:
            while (message := await self._ws.receive()).type is WSMsgType.BINARY:
                try:
                    frame = decode(message.data)
                except ProtocolError as error:
                    await self.fail(error)
                    return
                self.stats.received.setdefault(frame.type, Count()).add(frame.size)
                if not await self._incoming.put(frame, frame.size):
                    return
            await self._ended_by(message)
        finally:
            # Whatever stopped the reading, nobody may be left waiting for a frame.
            if not self._closing:
                self._error = ProtocolError(
                    "connection-lost", f"The connection to {self.name} broke.", "Connect again."
                )
                await self._release()

    async def _ended_by(self, message: aiohttp.WSMessage) -> None:
        """The socket delivered something other than a binary message: mostly the end."""
        if message.type is WSMsgType.TEXT:
            await self.fail(ProtocolError("bad-frame", "Text messages are not part of the protocol."))
            return
        if self._closing:
            return
        if message.type is WSMsgType.CLOSE:
            code, reason = message.data, message.extra or ""
            if code in _GRACEFUL:
                self._error = ProtocolError("closed", f"{self.name} closed the connection.", "Connect again.")
            else:
                why = f"{self.name} closed with code {code}: {reason}".rstrip(": ")
                self._error = ProtocolError("closed-by-peer", why)
        elif isinstance(message.data, aiohttp.WebSocketError) and message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
            self._error = ProtocolError("oversized", f"{self.name} sent a message above {MAX_FRAME} bytes.")
        elif isinstance(message.data, aiohttp.WebSocketError):
            self._error = ProtocolError("bad-frame", f"{self.name} broke the WebSocket protocol: {message.data}.")
        else:
            self._error = ProtocolError("connection-lost", f"The connection to {self.name} broke.", "Connect again.")
        await self._release()


def _as_protocol(error: EfedError) -> ProtocolError:
    return error if isinstance(error, ProtocolError) else ProtocolError(error.code, error.message, error.hint)


def ws_url(endpoint: str) -> str:
    """WebSocket URL of a registered endpoint: `http://host:port` gives `ws://host:port/v1/ws`; ws and wss URLs pass.

    Raises ProtocolError("bad-endpoint") for anything that is no http, https, ws or wss URL with a host.
    """
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https", "ws", "wss"):
        raise ProtocolError("bad-endpoint", f"{endpoint[:200]!r} is no node endpoint.", "Expected http://host:port.")
    if parts.scheme in ("ws", "wss") and parts.path not in ("", "/"):
        return endpoint
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + WS_PATH, "", ""))


async def connect(
    url: str,
    *,
    timeout: float = 10.0,  # noqa: ASYNC109  (the error names the endpoint)
    session: aiohttp.ClientSession | None = None,
    limits: PeerLimits | None = None,
    stats: PeerStats | None = None,
) -> Peer:
    """A Peer to the node at `url` (its registered endpoint, or a WebSocket URL).

    Without `session` the Peer owns one and closes it; `stats` may be shared with other Peers. Raises ProtocolError
    "unreachable" when nothing answers within `timeout` seconds or what answers is no node, "bad-endpoint" for a
    malformed URL.
    """
    target = ws_url(url)
    limits = limits or PeerLimits()
    owned = None if session is not None else aiohttp.ClientSession()
    client = session or owned
    assert client is not None
    try:
        async with asyncio.timeout(timeout):
            ws = await client.ws_connect(
                target,
                timeout=aiohttp.ClientWSTimeout(ws_close=limits.close_timeout),
                heartbeat=limits.heartbeat,
                max_msg_size=_MAX_MESSAGE,
                compress=0,
            )
    except (TimeoutError, OSError, ValueError, aiohttp.ClientError) as error:
        if owned is not None:
            await owned.close()
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise ProtocolError("unreachable", f"Cannot reach a node at {url}: {why}.", "Is it running?") from error
    except BaseException:
        if owned is not None:
            await owned.close()
        raise
    return Peer(ws, name=url, limits=limits, session=owned, stats=stats)


async def accept(request: web.Request, *, limits: PeerLimits | None = None, stats: PeerStats | None = None) -> Peer:
    """The server's Peer for a WebSocket request. The handler ends with `return peer.response`."""
    limits = limits or PeerLimits()
    ws: web.WebSocketResponse[Any] = web.WebSocketResponse(
        timeout=limits.close_timeout, heartbeat=limits.heartbeat, max_msg_size=_MAX_MESSAGE, compress=False
    )
    await ws.prepare(request)
    return Peer(ws, name=request.remote or "the other side", limits=limits, stats=stats)

"""The client's connection to one node of its route."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.messages import RouteHop
from efedllm.errors import ProtocolError
from efedllm.wire import Identity, Peer, connect, handshake, parse
from efedllm.wire.messages import AnyMessage, Message


@dataclass(frozen=True)
class Arrival:
    """A message from hop `index`, or the end of its connection."""

    index: int
    message: AnyMessage | None
    error: ProtocolError | None
    at: float  # time.perf_counter


class HopLink:
    """The connection to one node, whose identity is proven when `open` returns. Messages go to the shared queue."""

    def __init__(self, index: int, hop: RouteHop, peer: Peer, connect_ms: float) -> None:
        self.index = index
        self.hop = hop
        self.connect_ms = connect_ms
        self._peer = peer
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, index: int, hop: RouteHop, domain: Domain, seconds: float) -> HopLink:
        """Connect within `seconds`, and have the node's registered signer sign a fresh challenge.

        Raises ProtocolError.
        """
        started = time.perf_counter()
        peer = await connect(hop.endpoint, timeout=seconds)
        try:
            await handshake(peer, Identity(domain), expect_node=hop.node, expect_signer=hop.signer)
        except BaseException:
            await peer.close()
            raise
        return cls(index, hop, peer, (time.perf_counter() - started) * 1000)

    def deliver_to(self, inbox: asyncio.Queue[Arrival]) -> None:
        """Put everything that arrives, and finally the end of the connection, into `inbox`."""
        self._task = asyncio.create_task(self._pump(inbox), name=f"messages of {self.hop.node}")

    async def _pump(self, inbox: asyncio.Queue[Arrival]) -> None:
        error = ProtocolError("closed", f"{self.hop.node} closed the connection.", "")
        try:
            async for frame in self._peer:
                await inbox.put(Arrival(self.index, parse(frame), None, time.perf_counter()))
        except ProtocolError as ended:
            error = ended
        await inbox.put(Arrival(self.index, None, error, time.perf_counter()))

    async def send(self, message: Message) -> None:
        """Raises ProtocolError when the connection is gone."""
        await self._peer.send(message.to_frame())

    async def farewell(self, message: Message) -> None:
        """Send if the connection is still open; ignore a failure."""
        with suppress(ProtocolError):
            await self.send(message)

    @property
    def closed(self) -> bool:
        return self._peer.closed

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._peer.close()

    @property
    def bytes_in(self) -> int:
        return self._peer.stats.bytes_received

    @property
    def bytes_out(self) -> int:
        return self._peer.stats.bytes_sent

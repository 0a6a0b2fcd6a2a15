"""Connections to clients and to other nodes: one long-lived link for each neighbour, shared by all jobs."""

from __future__ import annotations

import asyncio
from typing import Protocol

from efedllm.commitments.messages import RouteHop
from efedllm.errors import EfedError, ProtocolError
from efedllm.logs import get_logger
from efedllm.wire import Identity, Peer, PeerStats, Remote, connect, handshake, parse
from efedllm.wire.messages import AnyMessage, ErrorMsg, Message


class Link:
    """A connection whose other end has proven who it is."""

    def __init__(self, peer: Peer, remote: Remote) -> None:
        self.peer = peer
        self.remote = remote

    @property
    def is_node(self) -> bool:
        return self.remote.role == "node"

    @property
    def closed(self) -> bool:
        return self.peer.closed

    def is_hop(self, hop: RouteHop) -> bool:
        """Whether the other end is this node, speaking with its registered signer."""
        return self.remote.node == hop.node and self.remote.signer == hop.signer

    async def send(self, message: Message) -> None:
        """Raises ProtocolError when the link is gone."""
        await self.peer.send(message.to_frame())

    async def refuse(self, error: EfedError, job_id: bytes | None = None) -> None:
        """Report a failure; the link stays open. A link that is gone needs no report."""
        if not self.closed:
            try:
                await self.send(ErrorMsg.of(error, job_id))
            except ProtocolError:
                return


class Handler(Protocol):
    """Who gets what arrives."""

    async def handle(self, link: Link, message: AnyMessage) -> None: ...

    def lost(self, link: Link) -> None: ...


async def pump(link: Link, handler: Handler) -> None:
    """Hand every message of a link to `handler`, in order, until the link ends. A malformed one ends it."""
    try:
        async for frame in link.peer:
            try:
                message = parse(frame)
            except ProtocolError as error:
                await link.peer.fail(error)
                return
            await handler.handle(link, message)
    except ProtocolError as ended:
        get_logger("links").info("link ended", peer=link.peer.name, code=ended.code, reason=ended.message)
    finally:
        handler.lost(link)


class Neighbours:
    """The links to other nodes, whichever side opened them."""

    def __init__(self, identity: Identity, handler: Handler, connect_timeout: float, stats: PeerStats) -> None:
        self._identity = identity
        self._stats = stats
        self._handler = handler
        self._timeout = connect_timeout
        self._links: dict[str, Link] = {}
        self._dialling: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def adopt(self, link: Link) -> None:
        """A node connected to us: use its link, unless there is one already."""
        node = link.remote.node
        if node is not None and (node not in self._links or self._links[node].closed):
            self._links[node] = link

    def forget(self, link: Link) -> None:
        """The link ended."""
        node = link.remote.node
        if node is not None and self._links.get(node) is link:
            del self._links[node]

    async def reach(self, hop: RouteHop) -> Link:
        """A link to a node of a route. ProtocolError "next-unreachable" when there is no way to it."""
        lock = self._dialling.setdefault(hop.node, asyncio.Lock())
        async with lock:
            known = self._links.get(hop.node)
            if known is not None and not known.closed and known.is_hop(hop):
                return known
            try:
                link = await self._dial(hop)
            except ProtocolError as error:
                raise ProtocolError(
                    "next-unreachable",
                    f"Node {hop.node} cannot be reached: {error.message}",
                    "Choose another route.",
                ) from error
            self._links[hop.node] = link
            return link

    async def _dial(self, hop: RouteHop) -> Link:
        peer = await connect(hop.endpoint, timeout=self._timeout, stats=self._stats)
        try:
            remote = await handshake(
                peer, self._identity, expect_node=hop.node, expect_signer=hop.signer, timeout=self._timeout
            )
        except BaseException:
            await peer.close()
            raise
        link = Link(peer, remote)
        task = asyncio.create_task(pump(link, self._handler), name=f"messages of {hop.node}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link

    @property
    def count(self) -> int:
        return len(self._links)

    async def close(self) -> None:
        """Say goodbye to everyone."""
        await asyncio.gather(*(link.peer.close() for link in list(self._links.values())))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

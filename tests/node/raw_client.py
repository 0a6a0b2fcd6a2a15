"""A client of raw frames: it says exactly what a test wants said, and checks what every honest client would."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from efedllm.chain import Chain
from efedllm.chain.amounts import WEI, cost_of_tokens
from efedllm.chain.types import NodeInfo
from efedllm.commitments.canonical import WireDtype, decode
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import (
    BPS,
    NO_EOS,
    Envelope,
    JobSpec,
    RouteHop,
    SessionKey,
    SignedCommit,
    Voucher,
    ids_hash,
)
from efedllm.commitments.signing import Signer, check
from efedllm.errors import ProtocolError
from efedllm.wire import Identity, Peer, connect, handshake, parse
from efedllm.wire.messages import (
    AckMsg,
    ActMsg,
    AnyMessage,
    CommitMsg,
    ErrorMsg,
    FinishMsg,
    OpenedMsg,
    OpenJobMsg,
    PayMsg,
    StartMsg,
    VoucherMsg,
)

PATIENCE = 20.0


@dataclass
class Outcome:
    """What a job brought."""

    tokens: list[int] = field(default_factory=list)
    commits: list[SignedCommit | None] = field(default_factory=list)
    finish: FinishMsg | None = None
    pays: list[PayMsg] = field(default_factory=list)


@dataclass(frozen=True)
class Session:
    """An open payment channel."""

    key: SessionKey
    session_id: bytes
    signer: Signer
    price: int


async def open_session(
    chain: Chain,
    model_id: bytes,
    nodes: Sequence[NodeInfo],
    *,
    deposit: int = WEI,
    life: int = 3600,
    shares: tuple[int, ...] | None = None,
    signer: Signer | None = None,
) -> Session:
    """Deposit and open a session over `nodes`. `signer`: a fresh one when None; `life`: seconds until it expires."""
    signer = signer or Signer(os.urandom(32))
    addresses = tuple(node.address for node in nodes)
    price = await chain.contracts.node_registry.check_route(model_id, addresses)
    if shares is None:
        cut = [node.price_per_ktok * BPS // price for node in nodes]
        shares = (*cut[:-1], BPS - sum(cut[:-1]))
    key = SessionKey(
        chain.account_address,
        signer.address,
        model_id,
        int.from_bytes(os.urandom(7)),
        (await chain.now()).timestamp + life,
        price,
        addresses,
        shares,
    )
    await chain.ensure_allowance("SessionEscrow", deposit)
    await chain.contracts.session_escrow.deposit(deposit)
    await chain.contracts.session_escrow.open(key, deposit)
    return Session(key, key.session_id(*chain.escrow_domain), signer, price)


class RawClient:
    """Connections to the nodes of one route."""

    def __init__(self, chain: Chain, session: Session, nodes: Sequence[NodeInfo]) -> None:
        self.chain = chain
        self.domain = chain.efl_domain
        self.session = session
        self.route = tuple(RouteHop(n.address, n.signer, n.endpoint, n.lo, n.hi, n.shard_root) for n in nodes)
        self.peers: list[Peer] = []
        self.next_seq = 0
        self._inbox: asyncio.Queue[tuple[int, AnyMessage]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> RawClient:
        for index, hop in enumerate(self.route):
            peer = await connect(hop.endpoint)
            await handshake(peer, Identity(self.domain), expect_node=hop.node, expect_signer=hop.signer)
            self.peers.append(peer)
            self._tasks.append(asyncio.create_task(self._pump(index, peer)))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(peer.close() for peer in self.peers))

    async def _pump(self, index: int, peer: Peer) -> None:
        async for frame in peer:
            await self._inbox.put((index, parse(frame)))

    # --- making messages ---

    def spec(self, prompt: Sequence[int], max_new: int, **changes: Any) -> JobSpec:
        """A greedy job with the next job number."""
        spec = JobSpec(
            self.session.session_id,
            self.next_seq,
            ids_hash(list(prompt)),
            len(prompt),
            max_new,
            0,
            0,
            1_000_000,
            bytes(32),
            int(WireDtype.F32),
            NO_EOS,
        )
        self.next_seq += 1
        return replace(spec, **changes)

    def voucher(self, tokens: int, session: Session | None = None) -> VoucherMsg:
        """A voucher that pays for `tokens` of the session."""
        session = session or self.session
        voucher = Voucher(session.session_id, cost_of_tokens(tokens, session.price), tokens, ZERO32)
        return VoucherMsg(voucher, session.signer.sign(voucher.digest(*self.chain.escrow_domain)))

    def open_msg(
        self, spec: JobSpec, prompt: Sequence[int], hop: int, voucher: VoucherMsg | None, **changes: Any
    ) -> OpenJobMsg:
        message = OpenJobMsg(
            self.session.key,
            spec,
            self.session.signer.sign(spec.digest(self.domain)),
            None if voucher is None else voucher.voucher,
            None if voucher is None else voucher.signature,
            hop,
            self.route,
            tuple(prompt) if hop == 0 else None,
        )
        return replace(message, **changes)

    # --- talking ---

    async def send(self, hop: int, message: Any) -> None:
        await self.peers[hop].send(message.to_frame())

    async def receive(self) -> tuple[int, AnyMessage]:
        async with asyncio.timeout(PATIENCE):
            return await self._inbox.get()

    async def expect_error(self, hop: int, message: Any) -> ErrorMsg:
        """Send, and return the ERROR that must come back."""
        await self.send(hop, message)
        _, answer = await self.receive()
        assert isinstance(answer, ErrorMsg), answer
        return answer

    async def open_job(self, spec: JobSpec, prompt: Sequence[int], paid_tokens: int | None = None) -> None:
        """Open the job on every hop, paying for `paid_tokens`. Raises the node's error."""
        voucher = None if paid_tokens is None else self.voucher(paid_tokens)
        for hop in range(len(self.route)):
            await self.send(hop, self.open_msg(spec, prompt, hop, voucher))
        opened: set[int] = set()
        while len(opened) < len(self.route):
            hop, message = await self.receive()
            if isinstance(message, ErrorMsg):
                raise message.to_error()
            assert isinstance(message, OpenedMsg), message
            assert (message.job_id, message.hop) == (spec.job_id, hop)
            opened.add(hop)

    async def start(self, spec: JobSpec) -> None:
        await self.send(0, StartMsg(spec.job_id))

    async def collect(
        self,
        spec: JobSpec,
        *,
        on_token: Callable[[int], Any] | None = None,
        on_pay: Callable[[PayMsg], Any] | None = None,
    ) -> Outcome:
        """Follow a started job to its receipts: check, acknowledge and chain every token. Raises the job's ERROR."""
        outcome = Outcome(commits=[None] * len(self.route))
        prev, last = ZERO32, self.route[-1]
        while outcome.finish is None or None in outcome.commits:
            hop, message = await self.receive()
            match message:
                case ActMsg():
                    assert hop == len(self.route) - 1
                    assert (message.boundary, message.n, message.prev) == (0, 1, prev)
                    assert message.from_pos == spec.prompt_tokens + len(outcome.tokens)
                    digest = self._token_envelope(message).digest(self.domain)
                    check(digest, message.signature, last.signer)
                    prev = digest
                    outcome.tokens.append(int(decode(message.payload, WireDtype.I32, 1)[0, 0]))
                    ack = self.session.signer.sign(digest)
                    await self.send(hop, AckMsg(spec.job_id, 0, message.from_pos, 1, ack))
                    if on_token is not None:
                        await on_token(len(outcome.tokens))
                case PayMsg():
                    outcome.pays.append(message)
                    if on_pay is not None:
                        await on_pay(message)
                case FinishMsg():
                    outcome.finish = message
                case CommitMsg():
                    outcome.commits[hop] = message.signed
                case ErrorMsg():
                    raise message.to_error()
                case _:
                    raise AssertionError(message)
        return outcome

    @staticmethod
    def _token_envelope(message: ActMsg) -> Envelope:
        from efedllm.commitments.leaves import act_leaf, chunk_hash

        leaf = act_leaf(message.job_id, 0, message.from_pos, WireDtype.I32, 1, message.payload)
        return message.envelope(chunk_hash([leaf]))

    async def generate(
        self, prompt: Sequence[int], max_new: int, paid_tokens: int, **changes: Any
    ) -> tuple[JobSpec, Outcome]:
        """Open, start and follow a job that is paid for in advance."""
        spec = self.spec(prompt, max_new, **changes)
        await self.open_job(spec, prompt, paid_tokens)
        await self.start(spec)
        return spec, await self.collect(spec)


async def job_error(client: RawClient) -> ProtocolError:
    """The next ERROR any node sends, whatever comes before it."""
    while True:
        _, message = await client.receive()
        if isinstance(message, ErrorMsg):
            return message.to_error()


__all__ = ["Outcome", "RawClient", "Session", "job_error", "open_session"]

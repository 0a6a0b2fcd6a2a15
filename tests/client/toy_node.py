"""A one-hop route: a real server that speaks the node's side of the protocol over a toy model, with faults on demand.

The toy model's next token is a function of all tokens before it, so an interrupted generation can be compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from aiohttp import web

from efedllm.chain.amounts import cost_of_tokens
from efedllm.commitments.blame import fed_ids, token_tree
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import (
    NO_EOS,
    Envelope,
    HopCommit,
    JobSpec,
    RouteHop,
    SessionKey,
    ids_bytes,
    ids_hash,
)
from efedllm.commitments.signing import Signer, check
from efedllm.errors import ProtocolError
from efedllm.wire import Identity, Peer, accept, handshake, parse
from efedllm.wire.messages import (
    AckMsg,
    ActMsg,
    CancelMsg,
    CommitMsg,
    ErrorMsg,
    FinishMsg,
    OpenedMsg,
    OpenJobMsg,
    PayMsg,
    StartMsg,
    VoucherMsg,
)
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.job import JobOrder
from efedllm_client.payments.session import Domains, PaidSession
from efedllm_client.payments.store import OPEN, ClientStore, StoredSession

CHAIN_ID = 1337
ESCROW = "0x" + "E5" * 20
DOMAIN = Domain(CHAIN_ID, "0x" + "C0" * 20)
DOMAINS = Domains(DOMAIN, (CHAIN_ID, ESCROW))
MODEL_ID = keccak(b"toy model")
NODE = "0x" + "11" * 20
PRICE = 1000
VOCAB = 50_000
HIDDEN = 4

CLIENT_SIGNER = Signer(b"\x01" * 32)
NODE_SIGNER = Signer(b"\x02" * 32)
STRANGER = Signer(b"\x03" * 32)


def next_token(ids: Sequence[int]) -> int:
    """The toy model."""
    return int.from_bytes(keccak(ids_bytes(list(ids)))[:4], "big") % VOCAB


def continuation(prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


def states(count: int) -> npt.NDArray[np.float32]:
    """The states after the last layer, float32 [count, HIDDEN]: all ones."""
    return np.ones((count, HIDDEN), dtype=np.float32)


@dataclass
class Behaviour:
    """What goes wrong, and when."""

    die_at: int | None = None  # drop the connection instead of sending this token
    error_at: int | None = None  # send ERROR instead of this token
    wrong_signature_at: int | None = None
    skip_at: int | None = None  # leave out a position
    hello_signer: Signer = NODE_SIGNER
    demand: int | None = None  # wei to ask for before the first token, and wait for
    finish_at: int | None = None  # end too early
    commit: bool = True
    commit_other_tokens: bool = False
    first_commit_by: Signer | None = None  # another commitment before the right one, by this key
    silent_at: int | None = None
    commit_other_states: bool = False
    commit_signer: Signer = NODE_SIGNER


@dataclass
class ToyNode:
    """What the server saw."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    endpoint: str = ""
    vouchers: list[VoucherMsg] = field(default_factory=list)
    acks: list[AckMsg] = field(default_factory=list)
    cancelled: bool = False
    opened: OpenJobMsg | None = None
    _acked: asyncio.Condition = field(default_factory=asyncio.Condition)
    _credited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def hop(self) -> RouteHop:
        return RouteHop(NODE, NODE_SIGNER.address, self.endpoint, 0, 2)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        peer = await accept(request)
        try:
            await handshake(peer, Identity(DOMAIN, NODE, self.behaviour.hello_signer))
            await self._serve(peer)
        except ProtocolError:
            pass
        await peer.close()
        return peer.socket  # type: ignore[return-value]

    async def _serve(self, peer: Peer) -> None:
        job: asyncio.Task[None] | None = None
        try:
            async for frame in peer:
                message = parse(frame)
                if isinstance(message, OpenJobMsg):
                    self.opened = message
                    check(message.job_spec.digest(DOMAIN), message.spec_signature, message.session_key.signer)
                    assert message.voucher is not None
                    assert message.voucher_signature is not None
                    self._credit(VoucherMsg(message.voucher, message.voucher_signature))
                    await peer.send(OpenedMsg(message.job_spec.job_id, 0, True).to_frame())
                elif isinstance(message, StartMsg):
                    assert self.opened is not None
                    work = self._embed if self.opened.job_spec.embeds else self._generate
                    job = asyncio.create_task(work(peer))
                elif isinstance(message, VoucherMsg):
                    self._credit(message)
                elif isinstance(message, AckMsg):
                    async with self._acked:
                        self.acks.append(message)
                        self._acked.notify_all()
                elif isinstance(message, CancelMsg):
                    self.cancelled = True
        finally:
            if job is not None:
                job.cancel()

    def _credit(self, message: VoucherMsg) -> None:
        check(message.voucher.digest(CHAIN_ID, ESCROW), message.signature, CLIENT_SIGNER.address)
        self.vouchers.append(message)
        if message.voucher.cumulative >= (self.behaviour.demand or 0):
            self._credited.set()

    async def _generate(self, peer: Peer) -> None:
        assert self.opened is not None
        assert self.opened.prompt is not None
        spec, prompt, does = self.opened.job_spec, list(self.opened.prompt), self.behaviour
        tree = BoundaryTree(spec.job_id, 0, WireDtype.I32, 1)
        tree.append(ids_bytes(prompt))
        if does.demand is not None and not self._credited.is_set():
            await peer.send(PayMsg(spec.job_id, does.demand, self.vouchers[-1].voucher.cumulative, 0).to_frame())
            await self._credited.wait()
        ids, prev = list(prompt), ZERO32
        reason: str = "length"
        for index in range(spec.max_new_tokens):
            if index == does.finish_at:
                break
            if self.cancelled:
                reason = "cancelled"
                break
            if index == does.die_at:
                await peer.fail(ProtocolError("killed", "The node died."))
                return
            if index == does.silent_at:
                return
            if index == does.error_at:
                await peer.send(ErrorMsg("engine-failed", "The engine failed.", "", spec.job_id).to_frame())
                return
            token = next_token(ids)
            ids.append(token)
            position = len(ids) - 1 + (1 if index == does.skip_at else 0)
            payload = ids_bytes([token])
            digest = Envelope(spec.job_id, 0, position, 1, tree.append(payload), prev).digest(DOMAIN)
            signer = STRANGER if index == does.wrong_signature_at else NODE_SIGNER
            await peer.send(
                ActMsg(spec.job_id, 0, position, 1, WireDtype.I32, 1, prev, signer.sign(digest), payload).to_frame()
            )
            prev = digest
            # One token in flight at a time, as in a ring of nodes.
            async with self._acked:
                while len(self.acks) <= index:
                    await self._acked.wait()
            if token == spec.eos_token:
                reason = "eos"
                break
        emitted = ids[len(prompt) :]
        if does.first_commit_by is not None:
            commit = replace(self._commit(spec, prompt, emitted).commit, in_root=ZERO32)
            signature = does.first_commit_by.sign(commit.digest(DOMAIN))
            await peer.send(CommitMsg(commit, signature).to_frame())
            await peer.send(self._commit(spec, prompt, emitted).to_frame())
        await peer.send(FinishMsg(spec.job_id, reason, len(emitted)).to_frame())  # type: ignore[arg-type]
        if does.commit and emitted:
            await peer.send(self._commit(spec, prompt, emitted).to_frame())

    async def _embed(self, peer: Peer) -> None:
        """States of ones for every token of the text."""
        assert self.opened is not None
        assert self.opened.prompt is not None
        spec = self.opened.job_spec
        count, payload = spec.prompt_tokens, encode(states(spec.prompt_tokens), WireDtype.F32)
        tree = BoundaryTree(spec.job_id, 1, WireDtype.F32, HIDDEN)
        signature = NODE_SIGNER.sign(Envelope(spec.job_id, 1, 0, count, tree.append(payload), ZERO32).digest(DOMAIN))
        rows = ActMsg(spec.job_id, 1, 0, count, WireDtype.F32, HIDDEN, ZERO32, signature, payload)
        await peer.send(rows.to_frame())
        async with self._acked:
            while not self.acks:
                await self._acked.wait()
        await peer.send(FinishMsg(spec.job_id, "length", 0).to_frame())
        await peer.send(self._commit(spec, list(self.opened.prompt), []).to_frame())

    def _commit(self, spec: JobSpec, prompt: list[int], emitted: list[int]) -> CommitMsg:
        said = [token + 1 for token in emitted] if self.behaviour.commit_other_tokens else emitted
        fed = fed_ids(prompt, said)
        outputs = BoundaryTree(spec.job_id, 1, WireDtype.F32, HIDDEN)
        outputs.append(encode(states(len(fed)), WireDtype.F32))
        commit = HopCommit(
            job_id=spec.job_id,
            spec_hash=spec.digest(DOMAIN),
            hop=0,
            lo=0,
            hi=2,
            profile=0,
            wire_dtype=spec.wire_dtype,
            tokens=len(fed),
            model_id=MODEL_ID,
            shard_root=ZERO32,
            in_root=token_tree(spec.job_id, fed).root(),
            out_root=keccak(b"other states") if self.behaviour.commit_other_states else outputs.root(),
            tokens_hash=ids_hash(said),
            aux_root=ZERO32,
            prev_commit=ZERO32,
            epoch=1,
        )
        return CommitMsg(commit, self.behaviour.commit_signer.sign(commit.digest(DOMAIN)))


@asynccontextmanager
async def running(behaviour: Behaviour | None = None) -> AsyncIterator[ToyNode]:
    """The node behind a real port of the loopback interface."""
    node = ToyNode(behaviour or Behaviour())
    app = web.Application()
    app.router.add_get("/v1/ws", node.handle)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    node.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield node
    finally:
        await runner.cleanup()


def session_key() -> SessionKey:
    return SessionKey(
        client="0x" + "AA" * 20,
        signer=CLIENT_SIGNER.address,
        model_id=MODEL_ID,
        nonce=7,
        expiry=2**39,
        max_price_per_ktok=PRICE,
        nodes=(NODE,),
        shares=(10_000,),
    )


async def paid_session(store: ClientStore, tokens: int = 10_000) -> PaidSession:
    """A session on a price of PRICE with room for `tokens`, in a real store."""
    key = session_key()
    deposit = cost_of_tokens(tokens, PRICE)
    stored = StoredSession(key.session_id(CHAIN_ID, ESCROW), CHAIN_ID, ESCROW, key.client, "{}", PRICE, deposit, OPEN)
    await store.add_session(stored)
    return PaidSession(store, DOMAINS, key, CLIENT_SIGNER, stored)


def job_spec(session: PaidSession, prompt: Sequence[int], new: int, eos_token: int = NO_EOS) -> JobSpec:
    return JobSpec(
        session_id=session.session_id,
        job_seq=0,
        prompt_hash=ids_hash(list(prompt)),
        prompt_tokens=len(prompt),
        max_new_tokens=new,
        temperature_milli=0,
        top_k=0,
        top_p_ppm=1_000_000,
        seed=ZERO32,
        wire_dtype=1,
        eos_token=eos_token,
    )


def job_order(
    session: PaidSession, spec: JobSpec, prompt: Sequence[int], hop: RouteHop, config: ClientConfig | None = None
) -> JobOrder:
    """A job through the one node of `hop`."""
    config = config or ClientConfig()
    terms = session.terms(len(prompt), spec.max_new_tokens, config)
    return JobOrder(session, spec, tuple(prompt), (hop,), DOMAIN, terms, config)

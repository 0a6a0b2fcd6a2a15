"""Paid sessions: open one on chain for a route, reuse an open one, sign its vouchers."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from efedllm.chain import Chain
from efedllm.chain.amounts import GWEI, cost_of_tokens, format_amount
from efedllm.chain.reverts import RevertError
from efedllm.chain.types import ChainTime, SessionInfo
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import JobSpec, SessionKey, Voucher
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError
from efedllm.wire.messages import VoucherMsg
from efedllm_client.config import ClientConfig
from efedllm_client.payments.rules import Amount, PaymentTerms, payable, session_deposit, split_shares
from efedllm_client.payments.session_keys import create_signer, load_signer
from efedllm_client.payments.store import CLOSED, OPEN, OPENING, ClientStore, StoredSession, session_lock
from efedllm_client.payments.wallet import OPEN_ON_CHAIN, fund_escrow

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount


@dataclass(frozen=True)
class PaidHop:
    """A node of a route as far as its payment is concerned."""

    node: str  # EIP-55 address
    price: int  # gwei of EFED per 1000 tokens
    layers: int


@dataclass(frozen=True)
class SessionRequest:
    """What a job needs from a session."""

    model_id: bytes
    hops: tuple[PaidHop, ...]  # in layer order, at the prices that the client accepted
    tokens: int  # prompt and new tokens together, at most
    deposit: int | None = None  # wei; None takes the cost of `jobs_ahead` such jobs
    fresh: bool = False  # always open a new session
    jobs_ahead: int = ClientConfig.jobs_ahead

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(hop.node for hop in self.hops)

    @property
    def price(self) -> int:
        """Gwei of EFED per 1000 tokens for the whole route."""
        return sum(hop.price for hop in self.hops)


@dataclass(frozen=True)
class Domains:
    """The signing domains of one network."""

    efl: Domain  # jobs, envelopes, commitments
    escrow: tuple[int, str]  # chain id and SessionEscrow: sessions and vouchers


class PaidSession:
    """One open session, held exclusively. Every voucher is on disk before `sign` returns it."""

    def __init__(
        self,
        store: ClientStore,
        domains: Domains,
        key: SessionKey,
        signer: Signer,
        stored: StoredSession,
        last: Voucher | None = None,
    ) -> None:
        """`last`: the voucher that promises most so far."""
        self._store = store
        self._domains = domains
        self._signer = signer
        self.key = key
        self.session_id = stored.session_id
        self.deposit = stored.deposit
        self.price = stored.price
        self.signed = Amount(0, 0) if last is None else Amount(last.cumulative, last.tokens)
        self.receipts_root = ZERO32 if last is None else last.receipts_root
        # After a crash nobody knows how far the last job came. The nodes were promised at most the last voucher.
        self.billed_tokens = max(stored.billed_tokens, self.signed.tokens) if stored.in_job else stored.billed_tokens

    async def take_job(self) -> int:
        """A job number of this session that was never used."""
        return await self._store.take_job(self.session_id)

    async def end_job(self, billed_tokens: int, commit_digests: Sequence[bytes] = ()) -> None:
        """Account for a job: the session's tokens so far, and the receipts it brought."""
        await self._store.end_job(self.session_id, billed_tokens)
        self.billed_tokens = max(self.billed_tokens, billed_tokens)
        if commit_digests:
            self.receipts_root = keccak(self.receipts_root + b"".join(commit_digests))

    async def sign(self, amount: Amount) -> VoucherMsg:
        """A signed voucher for `amount`, kept before it is returned. Raises ConfigError "voucher-regression"."""
        voucher = Voucher(self.session_id, amount.cumulative, amount.tokens, self.receipts_root)
        signed = VoucherMsg(voucher, self._signer.sign(voucher.digest(*self._domains.escrow)))
        await self._store.save_voucher(signed)
        self.signed = amount
        return signed

    def terms(self, prompt_tokens: int, max_new_tokens: int, config: ClientConfig) -> PaymentTerms:
        """Payment terms of the next job. Raises ConfigError "deposit-exhausted" when the prompt is not covered."""
        terms = PaymentTerms(
            price=self.price,
            deposit=self.deposit,
            billed_before=self.billed_tokens,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
            advance=config.advance_tokens,
            every=config.voucher_tokens,
        )
        payable(terms, 0)
        return terms

    def sign_spec(self, spec: JobSpec) -> bytes:
        return self._signer.sign(spec.digest(self._domains.efl))

    def sign_digest(self, digest: bytes) -> bytes:
        """Signature of the session key, e.g. to acknowledge a token's envelope."""
        return self._signer.sign(digest)


class Sessions:
    """Opens sessions of one wallet and finds open ones to reuse."""

    def __init__(
        self,
        chain: Chain,
        store: ClientStore,
        wallet: LocalAccount,
        directory: Path,
        config: ClientConfig | None = None,
    ) -> None:
        """`directory`: the folder of the session keys and locks."""
        self._chain = chain
        self._contracts = chain.contracts
        self._store = store
        self._domains = Domains(chain.efl_domain, chain.escrow_domain)
        self._wallet = wallet
        self._directory = directory
        self._config = config or ClientConfig()

    @property
    def client(self) -> str:
        """Address of the wallet."""
        return str(self._wallet.address)

    async def known(self) -> list[StoredSession]:
        """This wallet's sessions on this network, newest first."""
        chain_id, escrow = self._chain.escrow_domain
        return await self._store.sessions(str(self._wallet.address), escrow, chain_id)

    async def open_routes(self, model_id: bytes) -> list[tuple[str, ...]]:
        """Routes for which this wallet has a session, as far as the store knows."""
        keys = [SessionKey.from_json(json.loads(s.key_json)) for s in await self.known() if s.status == OPEN]
        return [key.nodes for key in keys if key.model_id == model_id]

    async def jobs_started(self) -> int:
        """How many jobs this wallet ever started on this network."""
        return sum(session.next_job for session in await self.known())

    async def may_open(self, nodes: Sequence[str], model_id: bytes, tokens: int) -> bool:
        """Whether the contracts accept a session on a route that holds the cost of `tokens`.

        They refuse one with an excluded node, and one with a node on probation whose cap is lower.
        """
        try:
            price = await self._contracts.node_registry.check_route(model_id, nodes)
            await self._contracts.verifier_committee.check_standing(nodes, cost_of_tokens(tokens, price))
        except RevertError:
            return False
        return True

    @asynccontextmanager
    async def acquire(self, request: SessionRequest) -> AsyncIterator[PaidSession]:
        """An open session for the route with room for the job, used by nobody else until the block ends.

        Raises ChainError (with the contract's reason), ConfigError "insufficient-balance", "deposit-too-small",
        "probation-cap" or "price-raised".
        """
        price = await self._contracts.node_registry.check_route(request.model_id, request.nodes)
        if price > request.price:
            # Prices change with the epoch: the accepted ones may be old.
            raise ConfigError(
                "price-raised",
                f"The route costs {format_amount(price * GWEI)} per 1000 tokens, not "
                f"{format_amount(request.price * GWEI)} as when it was chosen.",
                "Run the command again: it chooses the route by today's prices.",
            )
        with ExitStack() as held:
            session = None if request.fresh else await self._reuse(request, price, held)
            yield session or await self._open(request, price, held)

    async def _reuse(self, request: SessionRequest, price: int, held: ExitStack) -> PaidSession | None:
        now = await self._chain.now()
        for stored in await self.known():
            if stored.status == CLOSED:
                continue
            key = SessionKey.from_json(json.loads(stored.key_json))
            if not fits(key, stored, request, price, now, self._config.session_margin_seconds):
                continue
            lock = ExitStack()
            if not lock.enter_context(session_lock(self._directory, stored.session_id)):
                lock.close()
                continue
            session = await self._resume(stored.session_id, key, request)
            if session is not None:
                held.push(lock)
                return session
            lock.close()
        return None

    async def _resume(self, session_id: bytes, key: SessionKey, request: SessionRequest) -> PaidSession | None:
        """The session when the chain has it open with enough left. Called with its lock held."""
        on_chain = await self._chain.session(session_id)
        if on_chain.status != OPEN_ON_CHAIN:
            if on_chain.status > OPEN_ON_CHAIN:
                await self._store.set_session(session_id, CLOSED)
            return None
        await self._store.set_session(session_id, OPEN, on_chain.deposit)
        stored = await self._store.session(session_id)
        last = await self._store.last_voucher(session_id)
        signer = load_signer(self._directory / "signers", self._wallet, key.signer)
        session = PaidSession(self._store, self._domains, key, signer, stored, last.voucher if last else None)
        return session if has_room(on_chain, session.billed_tokens + request.tokens, stored.price) else None

    async def _open(self, request: SessionRequest, price: int, held: ExitStack) -> PaidSession:
        job_cost = cost_of_tokens(request.tokens, price)
        wanted = session_deposit(job_cost, request.deposit, None, request.jobs_ahead)
        cap = await self._probation_cap(request.nodes, wanted)
        # The escrow refuses an empty deposit, so a free route takes one wei.
        wanted = max(session_deposit(job_cost, request.deposit, cap, request.jobs_ahead), 1)
        amount = await fund_escrow(self._chain, max(job_cost, 1), wanted, exact=request.deposit is not None)
        signer = create_signer(self._directory / "signers", self._wallet)
        now = await self._chain.now()
        key = SessionKey(
            client=str(self._wallet.address),
            signer=signer.address,
            model_id=request.model_id,
            nonce=secrets.randbits(63),
            expiry=now.timestamp + self._config.session_seconds,
            max_price_per_ktok=price,
            nodes=request.nodes,
            shares=split_shares([(hop.price, hop.layers) for hop in request.hops]),
        )
        chain_id, escrow = self._chain.escrow_domain
        session_id = key.session_id(chain_id, escrow)
        stored = StoredSession(
            session_id=session_id,
            chain_id=chain_id,
            escrow=escrow,
            client=key.client,
            key_json=json.dumps(key.to_json()),
            price=price,
            deposit=amount,
            status=OPENING,
        )
        held.enter_context(session_lock(self._directory, session_id))
        await self._store.add_session(stored)
        await self._contracts.session_escrow.open(key, amount)
        await self._store.set_session(session_id, OPEN)
        return PaidSession(self._store, self._domains, key, signer, stored)

    async def _probation_cap(self, nodes: Sequence[str], value: int) -> int | None:
        """Most wei a session on `nodes` may hold when below `value`. Raises RevertError when a node is excluded."""
        cap: int | None = None
        for _ in nodes:
            try:
                await self._contracts.verifier_committee.check_standing(nodes, value)
                return cap
            except RevertError as error:
                if error.name != "ProbationCapExceeded":
                    raise
                cap = value = int(error.values["cap"])
                if cap == 0:
                    return 0
        return cap


def fits(
    key: SessionKey, stored: StoredSession, request: SessionRequest, price: int, now: ChainTime, margin: int
) -> bool:
    """Whether a known session has the route, the model and today's price, and lives `margin` seconds longer."""
    return (
        key.nodes == request.nodes
        and key.model_id == request.model_id
        and stored.price == price
        and key.expiry >= now.timestamp + margin
    )


def has_room(session: SessionInfo, tokens: int, price: int) -> bool:
    """Whether the deposit covers `tokens`, counted over the whole session."""
    return cost_of_tokens(tokens, price) <= session.deposit

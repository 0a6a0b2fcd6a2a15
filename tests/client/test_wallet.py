"""Wallet and sessions against the real contracts on Ganache."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from eth_account import Account

from efedllm.chain import Chain
from efedllm.chain.amounts import WEI, cost_of_tokens
from efedllm.chain.contracts import ModelParams
from efedllm.chain.reverts import RevertError
from efedllm.errors import ChainError, ConfigError
from efedllm_client.config import ClientConfig
from efedllm_client.payments import closing, wallet
from efedllm_client.payments.rules import Amount
from efedllm_client.payments.session import PaidHop, SessionRequest, Sessions, fits
from efedllm_client.payments.store import ClientStore, StoredSession

if TYPE_CHECKING:
    from tests.live_network import LiveNetwork

PRICE = 4_000_000  # gwei per 1000 tokens and node: 0.004 EFED
NODES = (2, 3)
CLIENT = 5
STAKE = 1_000 * WEI


@dataclass
class Bench:
    """A client's wallet with 1000 EFED and two registered nodes that cover a model of 4 layers."""

    chain: Chain
    store: ClientStore
    home: Path
    model_id: bytes
    hops: tuple[PaidHop, ...]

    @property
    def sessions(self) -> Sessions:
        assert self.chain.account is not None
        return Sessions(self.chain, self.store, self.chain.account, self.home)

    def request(self, tokens: int = 100, deposit: int | None = None, fresh: bool = False) -> SessionRequest:
        return SessionRequest(self.model_id, self.hops, tokens, deposit, fresh)


@pytest_asyncio.fixture
async def bench(deployed: LiveNetwork, tmp_path: Path) -> AsyncIterator[Bench]:
    async with await deployed.connect(0) as founder:
        params = ModelParams(
            weights_root=b"\x01" * 32,
            layers=4,
            hidden=8,
            rank_bps=10_000,
            quant=0,
            profile=0,
            constants_hash=bytes(32),
            certificate_hash=bytes(32),
        )
        done = await founder.contracts.model_registry.register(bytes(32), params, b"\x02" * 32, "")
        model_id = done.event("ModelRegistered").args["modelId"]
        for index in NODES:
            await founder.contracts.efed_token.transfer(deployed.account(index).address, STAKE)
        await founder.contracts.efed_token.transfer(deployed.account(CLIENT).address, 1_000 * WEI)
    hops = []
    for position, index in enumerate(NODES):
        async with await deployed.connect(index) as node:
            await node.ensure_allowance("StakeVault", STAKE)
            await node.contracts.stake_vault.stake(STAKE)
            lo, hi = 2 * position, 2 * position + 2
            signer = Account.create().address
            await node.contracts.node_registry.register(
                model_id, lo, hi, PRICE, signer, b"\x03" * 32, "http://127.0.0.1:1"
            )
            address = node.account_address
        hops.append(PaidHop(address, PRICE, hi - lo))
    async with await deployed.connect(CLIENT) as chain:
        store = await ClientStore.at(tmp_path / "client.db")
        yield Bench(chain, store, tmp_path, model_id, tuple(hops))
        await store.close()


async def test_deposit_is_one_permit_and_withdraw_gives_it_back(bench: Bench) -> None:
    await wallet.deposit(bench.chain, 30 * WEI)
    held = await wallet.balances(bench.chain, bench.store)
    assert (held.efed, held.escrow) == (970 * WEI, 30 * WEI)
    assert held.eth > 0
    done = await closing.withdraw(bench.chain, bench.store, bench.home, 10 * WEI)
    assert (done.amount, done.left) == (10 * WEI, 20 * WEI)
    assert await bench.chain.token_balance(bench.chain.account_address) == 980 * WEI
    assert (await closing.withdraw(bench.chain, bench.store, bench.home, None)).amount == 20 * WEI


async def test_depositing_or_withdrawing_more_than_there_is(bench: Bench) -> None:
    with pytest.raises(ConfigError) as caught:
        await wallet.deposit(bench.chain, 2_000 * WEI)
    assert caught.value.code == "insufficient-balance"
    with pytest.raises(ConfigError) as caught:
        await closing.withdraw(bench.chain, bench.store, bench.home, WEI)
    assert caught.value.code == "insufficient-balance"
    held = await wallet.balances(bench.chain, bench.store)
    assert (held.efed, held.escrow) == (1_000 * WEI, 0)


async def test_a_session_funds_itself_and_is_used_again_while_it_has_room(bench: Bench) -> None:
    async with bench.sessions.acquire(bench.request()) as first:
        assert first.price == 2 * PRICE
        assert first.key.shares == (5_000, 5_000)
        on_chain = await bench.chain.session(first.session_id)
        assert (on_chain.status, on_chain.deposit) == (1, cost_of_tokens(100, 2 * PRICE) * 8)
        assert await first.take_job() == 0
        await first.sign(Amount(cost_of_tokens(90, 2 * PRICE), 90))
        await first.end_job(80)
    async with bench.sessions.acquire(bench.request()) as again:
        assert again.session_id == first.session_id
        assert (again.billed_tokens, again.signed.tokens) == (80, 90)
        assert again.key.signer == first.key.signer
        assert await again.take_job() == 1
    # The second job was never accounted for: what was promised counts as used.
    async with bench.sessions.acquire(bench.request()) as third:
        assert third.billed_tokens == 90
    async with bench.sessions.acquire(bench.request(tokens=800)) as other:
        assert other.session_id != first.session_id


async def test_a_price_raised_since_the_route_was_chosen_is_not_paid(bench: Bench) -> None:
    """The wallet accepted, and limited, the price it was shown."""
    cheap = tuple(replace(hop, price=hop.price - 1) for hop in bench.hops)
    with pytest.raises(ConfigError) as caught:
        async with bench.sessions.acquire(replace(bench.request(), hops=cheap)):
            pass
    assert caught.value.code == "price-raised"
    held = await wallet.balances(bench.chain, bench.store)
    assert (held.efed, held.escrow, await bench.sessions.known()) == (1_000 * WEI, 0, [])


async def test_a_session_about_to_expire_is_not_used_again(bench: Bench) -> None:
    request = bench.request()
    async with bench.sessions.acquire(request) as session:
        price, key = session.price, session.key
    (stored,) = await bench.sessions.known()
    now = await bench.chain.now()
    margin = ClientConfig.session_margin_seconds
    for left, usable in ((margin, True), (margin - 1, False), (0, False), (-1, False)):
        then = replace(now, timestamp=key.expiry - left)
        assert fits(key, stored, request, price, then, margin) is usable


async def test_a_session_in_use_is_not_shared(bench: Bench) -> None:
    async with bench.sessions.acquire(bench.request()) as first, bench.sessions.acquire(bench.request()) as second:
        assert first.session_id != second.session_id


async def test_the_session_key_is_kept_encrypted_and_private(bench: Bench) -> None:
    async with bench.sessions.acquire(bench.request()) as session:
        (path,) = (bench.home / "signers").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    assert session.key.signer.lower() == path.stem
    assert "ciphertext" in document["crypto"]


async def test_a_session_recorded_before_a_crash_is_found_open(bench: Bench) -> None:
    """The store says opening, the chain says open: the process died between the two."""
    async with bench.sessions.acquire(bench.request()) as session:
        await bench.store.set_session(session.session_id, "opening")
    async with bench.sessions.acquire(bench.request()) as again:
        assert again.session_id == session.session_id


async def test_with_little_money_the_session_is_as_large_as_it_can_be(bench: Bench) -> None:
    job = cost_of_tokens(100, 2 * PRICE)
    await bench.chain.contracts.efed_token.transfer(bench.hops[0].node, 1_000 * WEI - 2 * job)
    async with bench.sessions.acquire(bench.request()) as session:
        assert (await bench.chain.session(session.session_id)).deposit == 2 * job
    with pytest.raises(ConfigError) as caught:
        async with bench.sessions.acquire(bench.request(fresh=True)):
            pass
    assert caught.value.code == "insufficient-balance"
    assert "efedllm wallet balance" in caught.value.hint


async def test_probation_caps_the_deposit(bench: Bench) -> None:
    """New nodes may only hold little: the default deposit shrinks to the cap, a job above it is refused."""
    params = await bench.chain.contracts.verifier_committee.params()
    cap = STAKE * params.probation_cap_bps // 10_000
    tokens = cap * 1000 // (2 * PRICE * 10**9)
    async with bench.sessions.acquire(bench.request(tokens=tokens)) as session:
        assert (await bench.chain.session(session.session_id)).deposit == cap
    with pytest.raises(ConfigError) as caught:
        async with bench.sessions.acquire(bench.request(tokens=2 * tokens)):
            pass
    assert caught.value.code == "probation-cap"


async def test_a_newcomer_is_tried_within_its_cap_and_with_one_job_s_deposit(bench: Bench) -> None:
    params = await bench.chain.contracts.verifier_committee.params()
    tokens = STAKE * params.probation_cap_bps // 10_000 * 1000 // (2 * PRICE * 10**9)
    nodes = bench.request().nodes
    assert await bench.sessions.may_open(nodes, bench.model_id, tokens)
    assert not await bench.sessions.may_open(nodes, bench.model_id, tokens + 1)
    assert not await bench.sessions.may_open(nodes[:1], bench.model_id, 1)
    tried = replace(bench.request(), jobs_ahead=1)
    assert await bench.sessions.jobs_started() == 0
    async with bench.sessions.acquire(tried) as session:
        assert (await bench.chain.session(session.session_id)).deposit == cost_of_tokens(100, 2 * PRICE)
        await session.take_job()
        await session.take_job()
    async with bench.sessions.acquire(bench.request(fresh=True)) as session:
        await session.take_job()
    assert await bench.sessions.jobs_started() == 3


async def test_a_route_that_the_chain_refuses(bench: Bench) -> None:
    bench.hops = tuple(reversed(bench.hops))
    with pytest.raises(RevertError) as caught:
        async with bench.sessions.acquire(bench.request()):
            pass
    assert caught.value.name == "RouteGap"
    assert await bench.sessions.known() == []


async def test_closing_settles_the_last_voucher_and_refunds_after_the_grace(bench: Bench) -> None:
    paid = cost_of_tokens(50, 2 * PRICE)
    async with bench.sessions.acquire(bench.request(deposit=5 * WEI)) as session:
        await session.sign(Amount(paid, 50))
        (busy,) = await closing.close_sessions(bench.chain, bench.store, bench.home)
        assert busy.outcome == "busy"
    (closed,) = await closing.close_sessions(bench.chain, bench.store, bench.home)
    assert (closed.outcome, closed.refund) == ("closing", 5 * WEI - paid)
    with pytest.raises(ConfigError) as caught:
        await closing.withdraw(bench.chain, bench.store, bench.home, WEI)
    assert caught.value.code == "not-yet"
    grace = await bench.chain.contracts.session_escrow.grace()
    await bench.chain.rpc.request("evm_increaseTime", [grace + 1])
    await bench.chain.rpc.request("evm_mine", [])
    done = await closing.withdraw(bench.chain, bench.store, bench.home, None)
    assert done.amount == 5 * WEI - paid
    assert await wallet.session_views(bench.chain, bench.store) == []
    (view,) = await wallet.session_views(bench.chain, bench.store, with_closed=True)
    assert (view.status, view.settled) == ("closed", paid)
    owed = [await bench.chain.contracts.session_escrow.owed_of(hop.node) for hop in bench.hops]
    assert owed[0] == owed[1] > 0


async def test_balances_count_what_sessions_hold(bench: Bench) -> None:
    async with bench.sessions.acquire(bench.request(deposit=5 * WEI)) as session:
        await session.sign(Amount(WEI, 125))
    held = await wallet.balances(bench.chain, bench.store)
    assert (held.efed, held.in_sessions, held.promised) == (995 * WEI, 5 * WEI, WEI)


async def test_another_chain_than_the_deployments(deployed: LiveNetwork) -> None:
    other = deployed.deployment.model_copy(update={"chain_id": 5})
    with pytest.raises(ChainError) as caught:
        await Chain.connect(deployed.rpc_url, other)
    assert caught.value.code == "wrong-chain"


@pytest.mark.parametrize(
    ("status", "expiry", "closes_at", "close_open", "step"),
    [
        ("open", 1000, 0, True, "close"),
        ("open", 1000, 0, False, "keep"),
        ("open", 400, 0, False, "finalize"),
        ("open", 480, 0, False, "keep"),
        ("closing", 1000, 500, True, "finalize"),
        ("closing", 1000, 501, True, "wait"),
        ("opening", 1000, 0, True, "keep"),
        ("opening", 400, 0, True, "forget"),
        ("closed", 1000, 0, True, "forget"),
    ],
)
def test_next_step(status: str, expiry: int, closes_at: int, close_open: bool, step: str) -> None:
    view = wallet.SessionView(bytes(32), status, bytes(32), (), 0, 0, 0, 0, expiry, closes_at)
    assert closing.next_step(view, now=500, grace=30, close_open=close_open) == step


def test_affordable() -> None:
    assert wallet.affordable(escrow=5, held=10, least=3, wanted=12, exact=True) == 12
    assert wallet.affordable(escrow=5, held=2, least=3, wanted=12, exact=False) == 7
    for exact, least in ((True, 3), (False, 8)):
        with pytest.raises(ConfigError):
            wallet.affordable(escrow=5, held=2, least=least, wanted=12, exact=exact)


def test_stored_session_defaults() -> None:
    stored = StoredSession(bytes(32), 1, "0x", "0x", "{}", 1, 1, "open")
    assert (stored.billed_tokens, stored.next_job, stored.in_job) == (0, 0, False)

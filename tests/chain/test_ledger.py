"""The ledger to the wei, the combined reads, the event history. Against a real Ganache."""

from __future__ import annotations

import dataclasses

import pytest

from efedllm.chain import Chain, ChainEvent
from efedllm.chain.amounts import WEI
from efedllm.chain.contracts import ModelParams
from efedllm.chain.ledger import read_ledger, replay
from efedllm.commitments.session import SessionKey
from efedllm.errors import ChainError
from tests.live_network import LiveNetwork

MODEL = ModelParams(
    weights_root=b"\x07" * 32,
    layers=8,
    hidden=64,
    rank_bps=9000,
    quant=1,
    profile=0,
    constants_hash=bytes(32),
    certificate_hash=bytes(32),
)


async def register_model(chain: Chain) -> bytes:
    result = await chain.contracts.model_registry.register(b"\x01" * 32, MODEL, b"\x09" * 32, "http://models/x")
    model_id: bytes = result.event("ModelRegistered").args["modelId"]
    return model_id


async def register_node(chain: Chain, model_id: bytes, lo: int, hi: int, endpoint: str) -> None:
    await chain.ensure_allowance("StakeVault", 100 * WEI)
    await chain.contracts.stake_vault.stake(100 * WEI)
    await chain.contracts.node_registry.register(model_id, lo, hi, 10**9, chain.account_address, b"\x05" * 32, endpoint)


async def give(chain: Chain, to: Chain, amount: int) -> None:
    await chain.contracts.efed_token.transfer(to.account_address, amount)


async def test_ledger_accounts_for_every_wei(deployed: LiveNetwork, chain: Chain) -> None:
    start = await read_ledger(chain)
    assert start.ok, start.problems
    async with await deployed.connect(1) as node, await deployed.connect(2) as client:
        await give(chain, node, 300 * WEI + 1)
        await give(chain, client, 50 * WEI + 3)
        model_id = await register_model(chain)
        await register_node(node, model_id, 0, 8, "http://n")
        await node.contracts.stake_vault.unbond(7)
        await client.ensure_allowance("SessionEscrow", 40 * WEI + 1)
        await client.contracts.session_escrow.deposit(40 * WEI + 1)
        now = await chain.now()
        key = SessionKey(
            client=client.account_address,
            signer=client.account_address,
            model_id=model_id,
            nonce=1,
            expiry=now.timestamp + 3600,
            max_price_per_ktok=10**9,
            nodes=(node.account_address,),
            shares=(10_000,),
        )
        opened = await client.contracts.session_escrow.open(key, 5 * WEI)
        session = await chain.session(opened.event("SessionOpened").args["sessionId"])
        assert (session.status, session.deposit, session.remaining) == (1, 5 * WEI, 5 * WEI)
        await chain.contracts.efed_token.burn(11)
        ledger = await read_ledger(chain)
    assert ledger.ok, ledger.problems
    assert ledger.burned == 11
    assert ledger.supply == ledger.minted - 11
    assert (ledger.vault, ledger.staked, ledger.unbonding) == (100 * WEI, 100 * WEI - 7, 7)
    assert (ledger.escrow, ledger.client_balances, ledger.sessions) == (40 * WEI + 1, 35 * WEI + 1, 5 * WEI)
    assert ledger.wallets[deployed.account(2).address] == 10 * WEI + 2


async def test_ledger_reports_tokens_that_no_rule_explains(chain: Chain) -> None:
    await chain.contracts.efed_token.transfer(chain.address("StakeVault"), 1)
    ledger = await read_ledger(chain)
    assert not ledger.ok
    assert ledger.problems == ["vault and staked + unbonding: 1 != 0 (difference 1 wei)"]


def test_replay_of_made_up_transfers() -> None:
    nobody, a, b = "0x" + "00" * 20, "0x" + "aa" * 20, "0x" + "bb" * 20

    def move(source: str, target: str, value: int) -> ChainEvent:
        return ChainEvent("EfedToken", "Transfer", {"from": source, "to": target, "value": value}, "", 0, "", 0)

    balances = replay([move(nobody, a, 10), move(a, b, 4), move(b, nobody, 1), move(a, a, 6)])
    assert (balances.minted, balances.burned, balances.holders) == (10, 1, {a: 6, b: 3})


async def test_readers_join_registration_stake_and_trust(deployed: LiveNetwork, chain: Chain) -> None:
    model_id = await register_model(chain)
    async with await deployed.connect(1) as node:
        await give(chain, node, 200 * WEI)
        await register_node(node, model_id, 0, 8, "http://one")
        info = await chain.node(node.account_address)
        assert (info.lo, info.hi, info.status, info.endpoint) == (0, 8, 1, "http://one")
        assert (info.stake_active, info.trust_ppm, info.standing, info.owed) == (100 * WEI, 0, 1, 0)
        await node.contracts.node_registry.set_endpoint("http://two")
        assert await chain.nodes(model_id) == [dataclasses.replace(info, endpoint="http://two")]
        assert await chain.nodes(b"\x00" * 32) == []
        await node.ensure_allowance("StakeVault", 100 * WEI)
        await node.contracts.stake_vault.stake(100 * WEI)
        await node.contracts.seat_registry.take_seat()
        assert [(item.address, item.active) for item in await chain.verifiers()] == [(node.account_address, False)]
        await deployed.clock(chain).skip_to((await chain.now()).epoch + 1, 0.1)
        assert [item.active for item in await chain.verifiers()] == [True]
        epoch = (await chain.now()).epoch
        await node.contracts.commitment_log.post(epoch, 0, b"\x03" * 32, 4)
        assert [(item.node, item.seq, item.count) for item in await chain.batches(epoch)] == [
            (node.account_address, 0, 4)
        ]
        assert await chain.seed(epoch) is None
    models = await chain.models()
    assert [(item.model_id, item.layers, item.uri, item.manifest_hash) for item in models] == [
        (model_id, 8, "http://models/x", b"\x09" * 32)
    ]
    assert await chain.model(model_id) == models[0]
    with pytest.raises(ChainError) as caught:
        await chain.model(b"\x77" * 32)
    assert caught.value.code == "unknown-model"


async def test_history_forgets_what_a_rolled_back_chain_no_longer_has(deployed: LiveNetwork, chain: Chain) -> None:
    async def amounts() -> list[int]:
        return [event.args["value"] for event in await chain.history("EfedToken", "Transfer")]

    other = deployed.account(1).address
    before = await amounts()
    snapshot = await chain.rpc.request("evm_snapshot")
    for amount in range(1, 4):
        await chain.contracts.efed_token.transfer(other, amount)
        assert await amounts() == [*before, *range(1, amount + 1)]
    await deployed.clock(chain).mine(20)
    assert await amounts() == [*before, 1, 2, 3]
    await chain.rpc.request("evm_revert", [snapshot])
    # The new branch is longer than the one that was read when history is asked again.
    for amount in range(10, 16):
        await chain.contracts.efed_token.transfer(other, amount)
    await deployed.clock(chain).mine(40)
    assert await amounts() == [*before, *range(10, 16)]
    assert await amounts() == [*before, *range(10, 16)]

"""Connecting: wrong chains, missing contracts, outages that end and outages that do not."""

from __future__ import annotations

import asyncio

import pytest

from efedllm.chain import Chain
from efedllm.chain.connection import Rpc
from efedllm.errors import ChainError
from efedllm_deploy.local import free_port
from tests.chain.drop_proxy import ProxyMaker
from tests.live_network import LiveNetwork


async def test_wrong_chain_id_names_both_chains(deployed: LiveNetwork) -> None:
    other = deployed.deployment.model_copy(update={"chain_id": 5})
    with pytest.raises(ChainError) as caught:
        await Chain.connect(deployed.rpc_url, other)
    assert caught.value.code == "wrong-chain"
    assert "is chain 1337" in caught.value.message
    assert "chain 5" in caught.value.message


async def test_missing_contract_is_named(deployed: LiveNetwork) -> None:
    contracts = dict(deployed.deployment.contracts)
    contracts["StakeVault"] = contracts["StakeVault"].model_copy(update={"address": "0x" + "11" * 20})
    other = deployed.deployment.model_copy(update={"contracts": contracts})
    with pytest.raises(ChainError) as caught:
        await Chain.connect(deployed.rpc_url, other)
    assert caught.value.code == "no-contract"
    assert "no StakeVault" in caught.value.message


async def test_contract_of_another_version_is_refused(deployed: LiveNetwork) -> None:
    contracts = dict(deployed.deployment.contracts)
    contracts["RewardPool"] = contracts["RewardPool"].model_copy(update={"abi_sha256": "00" * 32})
    with pytest.raises(ChainError) as caught:
        await Chain.connect(deployed.rpc_url, deployed.deployment.model_copy(update={"contracts": contracts}))
    assert caught.value.code == "abi-mismatch"


async def test_nothing_listens_ends_within_the_budget_with_a_hint(deployed: LiveNetwork) -> None:
    with pytest.raises(ChainError) as caught:
        await Chain.connect(f"http://127.0.0.1:{free_port()}", deployed.deployment, budget=0.3)
    assert caught.value.code == "rpc-down"
    assert "check --rpc" in caught.value.hint
    assert "(connection refused)" in caught.value.message


async def test_an_address_that_is_none() -> None:
    with pytest.raises(ChainError) as caught:
        Rpc("localhost:8545")
    assert caught.value.code == "bad-rpc"


async def test_reads_wait_out_an_outage(deployed: LiveNetwork, proxies: ProxyMaker) -> None:
    proxy = await proxies(deployed.rpc_url)
    async with await Chain.connect(proxy.url, deployed.deployment, budget=20.0) as chain:
        expected = await chain.contracts.efed_token.total_supply()
        proxy.refuse()
        reading = asyncio.create_task(chain.contracts.efed_token.total_supply())
        await asyncio.sleep(0.3)
        assert not reading.done()
        proxy.mode = "pass"
        assert await reading == expected


async def test_a_server_that_hangs_is_an_outage_too(deployed: LiveNetwork) -> None:
    async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(ChainError) as caught:
            await Chain.connect(f"http://127.0.0.1:{port}", deployed.deployment, budget=0.5)
        assert caught.value.code == "rpc-down"
    finally:
        server.close()


async def test_parallel_reads_on_a_fresh_connection(deployed: LiveNetwork) -> None:
    async with await deployed.connect(None) as chain:
        supplies = await asyncio.gather(*(chain.contracts.efed_token.total_supply() for _ in range(30)))
        assert len(set(supplies)) == 1


async def test_time_follows_the_chain_and_not_the_machine(deployed: LiveNetwork, chain: Chain) -> None:
    clock = deployed.clock(chain)
    # The last block may be as old as the deployment, and the chain's clock ran on since.
    await clock.mine()
    start = await chain.now()
    later = await clock.skip_to_phase(start.epoch + 7, 2, 0.5)
    now = await chain.now()
    assert (now.epoch, now.phase) == (start.epoch + 7, 2) == (later.epoch, later.phase)
    assert await chain.contracts.commitment_log.current_epoch() == now.epoch
    assert await chain.contracts.commitment_log.phase() == now.phase
    assert await chain.contracts.commitment_log.epoch_start(now.epoch) == now.epoch_start
    assert 0.8 < now.fraction < 0.9
    # Never backwards.
    assert (await clock.skip_to(start.epoch, 0.0)).timestamp >= now.timestamp


async def test_a_chain_that_stood_still_is_not_moved_too_far(deployed: LiveNetwork, chain: Chain) -> None:
    quiet, jump = 10_000, 40_000  # seconds; the margin below is for machines that pause
    start = (await chain.now()).timestamp
    # No block since, but the chain's clock ran on.
    await chain.rpc.request("evm_increaseTime", [quiet])
    there = await deployed.clock(chain).advance_to(start + jump)
    assert start + jump <= there.timestamp < start + jump + quiet / 2


async def test_cancelled_requests_leave_the_others_alone(ganache: str) -> None:
    for lap in range(40):
        busy = Rpc(ganache)
        tasks = [asyncio.create_task(busy.integer("eth_chainId")) for _ in range(6)]
        for _ in range(lap % 8):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await busy.close()
    rpc = Rpc(ganache, budget=3.0)
    assert await rpc.integer("eth_chainId") == 1337
    await rpc.close()

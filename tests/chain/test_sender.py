"""Sending: nonces, reverts, lost connections, restarts. Against a real Ganache."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from efedllm.chain import Chain
from efedllm.chain.amounts import WEI
from efedllm.chain.keystore import load
from efedllm.chain.reverts import RevertError
from efedllm.errors import ChainError
from tests.chain.drop_proxy import ProxyMaker
from tests.live_network import LiveNetwork

STRANGER = "0x00000000000000000000000000000000DeaDBeef"


async def test_twenty_parallel_sends_all_arrive_in_nonce_order(chain: Chain) -> None:
    before = await chain.rpc.integer("eth_getTransactionCount", [chain.account_address, "latest"])
    results = await asyncio.gather(*(chain.contracts.efed_token.transfer(STRANGER, amount) for amount in range(1, 21)))
    assert await chain.token_balance(STRANGER) == sum(range(1, 21))
    assert len({result.hash for result in results}) == 20
    assert all(result.event("Transfer").args["value"] == index + 1 for index, result in enumerate(results))
    after = await chain.rpc.integer("eth_getTransactionCount", [chain.account_address, "latest"])
    assert after == before + 20


async def test_two_connections_of_one_account_share_the_nonces(deployed: LiveNetwork) -> None:
    async with await deployed.connect() as one, await deployed.connect() as two:
        await asyncio.gather(
            *(chain.contracts.efed_token.transfer(STRANGER, 1) for chain in (one, two) for _ in range(8))
        )
        assert await one.token_balance(STRANGER) == 16


async def test_revert_is_decoded_with_its_numbers_and_a_hint_and_costs_nothing(chain: Chain) -> None:
    before = await chain.rpc.integer("eth_getBalance", [chain.account_address, "latest"])
    with pytest.raises(RevertError) as caught:
        await chain.contracts.stake_vault.unbond(40 * WEI)
    assert caught.value.code == "revert:InsufficientStake"
    assert caught.value.values == {"needed": 40 * WEI, "available": 0}
    assert "needed 40 EFED, available 0" in caught.value.message
    assert "Stake more" in caught.value.hint
    assert await chain.rpc.integer("eth_getBalance", [chain.account_address, "latest"]) == before


async def test_revert_of_a_view_is_decoded_too(chain: Chain) -> None:
    with pytest.raises(RevertError) as caught:
        await chain.contracts.node_registry.check_route(b"\x01" * 32, [chain.account_address])
    assert caught.value.code == "revert:ModelNotActive"
    assert "0x0101" in caught.value.message


async def test_token_balance_too_small(deployed: LiveNetwork) -> None:
    async with await deployed.connect(3) as poor:
        with pytest.raises(RevertError) as caught:
            await poor.contracts.efed_token.transfer(STRANGER, 5 * WEI)
    assert caught.value.code == "revert:ERC20InsufficientBalance"
    assert "needed 5 EFED" in caught.value.message


async def test_no_gas_money_names_the_account_and_both_amounts(deployed: LiveNetwork, tmp_path: Path) -> None:
    from efedllm.chain.keystore import create

    create(tmp_path / "empty.json", "pw", light=True)
    account = load(tmp_path / "empty.json", "pw")
    async with await Chain.connect(deployed.rpc_url, deployed.deployment, account) as chain:
        with pytest.raises(ChainError) as caught:
            await chain.contracts.efed_token.approve(STRANGER, 1)
    assert caught.value.code == "insufficient-funds"
    assert account.address in caught.value.message
    assert "has 0 ETH" in caught.value.message


async def test_read_only_connection_cannot_send(deployed: LiveNetwork) -> None:
    async with await deployed.connect(None) as chain:
        with pytest.raises(ChainError, match="needs an account"):
            await chain.contracts.efed_token.approve(STRANGER, 1)


async def test_an_argument_that_does_not_fit_is_refused_before_sending(chain: Chain) -> None:
    with pytest.raises(ChainError) as caught:
        await chain.contracts.efed_token.transfer("not an address", 1)
    assert caught.value.code == "bad-argument"
    with pytest.raises(ChainError) as caught:
        await chain.contracts.efed_token.transfer(STRANGER, -1)
    assert caught.value.code == "bad-argument"


async def test_lost_answer_to_a_send_pays_once(deployed: LiveNetwork, proxies: ProxyMaker) -> None:
    proxy = await proxies(deployed.rpc_url)
    chain = await Chain.connect(proxy.url, deployed.deployment, deployed.account())
    async with chain:
        proxy.mode, proxy.match = "swallow", b"eth_sendRawTransaction"

        proxy.heal_after = 1
        result = await chain.contracts.efed_token.transfer(STRANGER, 7)
        assert proxy.swallowed == 1
        assert result.status == 1
        assert await chain.token_balance(STRANGER) == 7


async def test_repeating_a_send_after_an_outage_pays_once(deployed: LiveNetwork, proxies: ProxyMaker) -> None:
    proxy = await proxies(deployed.rpc_url)
    chain = await Chain.connect(proxy.url, deployed.deployment, deployed.account(), budget=1.0)
    async with chain:
        proxy.mode, proxy.match = "swallow", b"eth_sendRawTransaction"
        with pytest.raises(ChainError) as caught:
            await chain.contracts.efed_token.transfer(STRANGER, 9)
        assert caught.value.code == "rpc-down"
        proxy.mode = "pass"
        first = await chain.contracts.efed_token.transfer(STRANGER, 9)
        assert await chain.token_balance(STRANGER) == 9
        # The same wish once more, after the first is settled, is a new payment.
        second = await chain.contracts.efed_token.transfer(STRANGER, 9)
        assert second.hash != first.hash
        assert await chain.token_balance(STRANGER) == 18


async def test_a_restarted_program_pays_once(deployed: LiveNetwork, proxies: ProxyMaker, tmp_path: Path) -> None:
    proxy = await proxies(deployed.rpc_url)
    journal = tmp_path / "pending.json"
    chain = await Chain.connect(proxy.url, deployed.deployment, deployed.account(), budget=0.5, journal=journal)
    async with chain:
        proxy.mode, proxy.match = "swallow", b"eth_sendRawTransaction"
        with pytest.raises(ChainError):
            await chain.contracts.efed_token.transfer(STRANGER, 11)
    assert journal.exists()
    async with await deployed.connect(0, journal=journal) as again:
        await again.contracts.efed_token.transfer(STRANGER, 11)
        assert await again.token_balance(STRANGER) == 11


async def test_an_orphan_whose_nonce_was_used_is_sent_anew(deployed: LiveNetwork, proxies: ProxyMaker) -> None:
    proxy = await proxies(deployed.rpc_url)
    chain = await Chain.connect(proxy.url, deployed.deployment, deployed.account(), budget=0.5)
    async with chain, await deployed.connect() as other:
        # Nothing arrives: the proxy closes before the request is forwarded.
        task = asyncio.create_task(chain.contracts.efed_token.transfer(STRANGER, 13))
        proxy.refuse()
        with pytest.raises(ChainError):
            await task
        await other.contracts.efed_token.transfer(STRANGER, 100)
        proxy.mode = "pass"
        await chain.contracts.efed_token.transfer(STRANGER, 13)
        assert await other.token_balance(STRANGER) == 113

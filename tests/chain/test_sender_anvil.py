"""Sending where transactions wait in a pool, and on chains without base fees. Against a real Anvil."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from efedllm.chain.connection import Rpc
from efedllm.chain.sender import Sender
from efedllm.errors import ChainError
from efedllm_deploy.local import chain_command, dev_account, free_port
from efedllm_deploy.process import spawn
from tests.live_network import eventually

CHAIN_ID = 1337
STRANGER = "0x00000000000000000000000000000000CafeBabe"


@pytest_asyncio.fixture
async def pool(anvil: str) -> AsyncIterator[Rpc]:
    """An Anvil that mines only when told."""
    rpc = Rpc(anvil)
    await rpc.request("evm_setAutomine", [False])
    yield rpc
    await rpc.request("evm_setAutomine", [True])
    await rpc.request("evm_mine")
    await rpc.close()


async def balance(rpc: Rpc) -> int:
    return await rpc.integer("eth_getBalance", [STRANGER, "latest"])


async def test_sends_do_not_wait_for_each_other_in_the_pool(pool: Rpc) -> None:
    before = await balance(pool)
    sender = Sender(pool, dev_account(4), CHAIN_ID)
    sends = [asyncio.create_task(sender.transact(STRANGER, b"", 1, "gift")) for _ in range(5)]

    async def all_pooled() -> bool:
        return int((await pool.request("txpool_status"))["pending"], 16) == 5

    await eventually(all_pooled, "five transactions in the pool")
    await pool.request("evm_mine")
    receipts = await asyncio.gather(*sends)
    assert len({receipt["transactionHash"] for receipt in receipts}) == 5
    assert await balance(pool) == before + 5


async def test_giving_up_and_trying_again_pays_once(pool: Rpc, tmp_path: Path) -> None:
    before = await balance(pool)
    journal = tmp_path / "pending.json"
    impatient = Sender(pool, dev_account(5), CHAIN_ID, journal=journal, timeout=0.3)
    with pytest.raises(ChainError) as caught:
        await impatient.transact(STRANGER, b"", 3, "gift")
    assert caught.value.code == "tx-timeout"
    await pool.request("evm_setAutomine", [True])
    await pool.request("evm_mine")
    receipt = await Sender(pool, dev_account(5), CHAIN_ID, journal=journal).transact(STRANGER, b"", 3, "gift")
    assert receipt["transactionHash"] in caught.value.message
    assert await balance(pool) == before + 3


async def test_a_cancelled_send_is_taken_up_again(pool: Rpc) -> None:
    before = await balance(pool)
    sender = Sender(pool, dev_account(6), CHAIN_ID)
    sending = asyncio.create_task(sender.transact(STRANGER, b"", 7, "gift"))

    async def pooled() -> bool:
        return int((await pool.request("txpool_status"))["pending"], 16) == 1

    await eventually(pooled, "the transaction is in the pool")
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    again = asyncio.create_task(sender.transact(STRANGER, b"", 7, "gift"))
    await pool.request("evm_setAutomine", [True])
    await pool.request("evm_mine")
    await again
    assert await balance(pool) == before + 7


async def test_a_damaged_journal_does_not_stop_sending(pool: Rpc, tmp_path: Path) -> None:
    await pool.request("evm_setAutomine", [True])
    for number, text in enumerate(("{", "[1]", '[{"payload": 1}]', "null")):
        journal = tmp_path / f"{number}.json"
        journal.write_text(text)
        receipt = await Sender(pool, dev_account(7), CHAIN_ID, journal=journal).transact(STRANGER, b"", 1, "gift")
        assert int(receipt["status"], 16) == 1


async def test_a_chain_without_base_fees(tmp_path: Path) -> None:
    port = free_port()
    command = ["berlin" if word == "shanghai" else word for word in chain_command("anvil", port)]
    child = await spawn("anvil", command, tmp_path / "log")
    rpc = Rpc(f"http://127.0.0.1:{port}")
    try:
        block = await rpc.request("eth_getBlockByNumber", ["latest", False])
        assert block.get("baseFeePerGas") is None
        receipt = await Sender(rpc, dev_account(), CHAIN_ID).transact(STRANGER, b"", 9, "gift")
        assert receipt["type"] in ("0x0", None)
        assert await balance(rpc) == 9
    finally:
        await rpc.close()
        await child.stop()

"""Moves the clock of a local chain, so that epochs pass without waiting."""

from __future__ import annotations

import asyncio
import time

from efedllm.chain.connection import LOCAL_CHAIN_IDS, Rpc
from efedllm.chain.types import ChainTime, chain_time
from efedllm.errors import ChainError

# A jump lands a little behind the wanted second, because the server adds its own wall clock.
_TRIES = 5
_MINE_SECONDS = 20.0


class DevClock:
    """Time travel on ganache or anvil; refuses to work on any other chain."""

    def __init__(self, rpc: Rpc, genesis: int, epoch_length: int) -> None:
        self._rpc = rpc
        self._genesis = genesis
        self._length = epoch_length

    async def check(self) -> None:
        """Raises ChainError "not-local" when this is no development chain."""
        chain_id = await self._rpc.integer("eth_chainId")
        if chain_id not in LOCAL_CHAIN_IDS:
            raise ChainError(
                "not-local", f"Chain {chain_id} is not a local one: its clock cannot be moved.", "Use `efedllm up`."
            )

    async def now(self) -> ChainTime:
        """Time by the latest block."""
        block = await self._rpc.request("eth_getBlockByNumber", ["latest", False])
        return chain_time(int(block["number"], 16), int(block["timestamp"], 16), self._genesis, self._length)

    async def mine(self, blocks: int = 1) -> None:
        """Mine empty blocks."""
        for _ in range(blocks):
            await self._rpc.request("evm_mine")

    async def _mine_past(self, block: int) -> None:
        """Mine until the chain is higher than `block`: a busy ganache answers evm_mine before it has mined."""
        deadline = time.monotonic() + _MINE_SECONDS
        await self._rpc.request("evm_mine")
        while await self._rpc.integer("eth_blockNumber") <= block:
            if time.monotonic() > deadline:
                raise ChainError("clock-stuck", f"The chain mines no block after {block}.", "Restart the local chain.")
            await asyncio.sleep(0.02)

    async def advance_to(self, timestamp: int) -> ChainTime:
        """Mine a block at `timestamp` or a second or two later; does nothing when the chain is there already."""
        await self.check()
        now = await self.now()
        if now.timestamp < timestamp:
            # The clock runs on between blocks: only a fresh one says how far it has to go.
            await self._mine_past(now.block)
        for _ in range(_TRIES):
            now = await self.now()
            if now.timestamp >= timestamp:
                return now
            await self._rpc.request("evm_increaseTime", [timestamp - now.timestamp])
            await self._mine_past(now.block)
        now = await self.now()
        if now.timestamp < timestamp:
            raise ChainError("clock-stuck", f"The chain's clock stays at {now.timestamp}, {timestamp} was wanted.")
        return now

    async def skip_to(self, epoch: int, fraction: float) -> ChainTime:
        """Go to `fraction` (0 to 1) of `epoch`. Never goes back."""
        start = self._genesis + (epoch - 1) * self._length
        return await self.advance_to(start + round(fraction * self._length))

    async def skip_to_phase(self, epoch: int, phase: int, into: float = 0.1) -> ChainTime:
        """Go `into` (0 to 1) of a phase (0 commit, 1 reveal, 2 tally) of `epoch`."""
        return await self.skip_to(epoch, (phase + into) / 3)


async def tick(rpc: Rpc, period: float = 1.0, idle_period: float = 5.0, idle_after: float = 300.0) -> None:
    """Mine a block every `period` seconds until cancelled: instamine alone lets no time pass on chain.

    When nobody has sent a transaction for `idle_after` seconds the blocks come every `idle_period`: each costs time in
    every later search for events.
    """
    last = 0
    active = time.monotonic()
    while True:
        idle = time.monotonic() - active > idle_after
        await asyncio.sleep(idle_period if idle else period)
        try:
            await rpc.request("evm_mine")
            height = await rpc.integer("eth_blockNumber")
        except ChainError as error:
            if error.code != "rpc-down":
                raise
            continue
        if height != last + 1:
            active = time.monotonic()
        last = height

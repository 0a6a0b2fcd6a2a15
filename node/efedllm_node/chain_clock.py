"""The chain's time as this node read it last. Protocol decisions use chain time, never local time."""

from __future__ import annotations

import asyncio

from efedllm.chain import Chain, ChainTime
from efedllm.errors import ChainError
from efedllm.logs import get_logger


class ChainClock:
    """Holds the latest ChainTime. It has a loop of its own, because the epoch loop may wait for transactions."""

    def __init__(self, chain: Chain, time: ChainTime) -> None:
        self._chain = chain
        self.time = time

    @classmethod
    async def start(cls, chain: Chain) -> ChainClock:
        return cls(chain, await chain.now())

    async def refresh(self) -> ChainTime:
        """Ask the chain. On ChainError the last known time stays."""
        self.time = await self._chain.now()
        return self.time

    async def run(self, period: float) -> None:
        """Ask every `period` seconds until cancelled."""
        log = get_logger("clock")
        while True:
            try:
                await self.refresh()
            except ChainError as error:
                log.warning("chain time unknown", code=error.code, reason=error.message)
            await asyncio.sleep(period)

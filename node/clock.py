"""The chain's time as this node saw it last. No decision others can check ever follows this machine's clock."""

from __future__ import annotations

from efedllm.chain import Chain, ChainTime


class Clock:
    """Holds the latest ChainTime; the duty loop keeps it fresh."""

    def __init__(self, chain: Chain, time: ChainTime) -> None:
        self._chain = chain
        self.time = time

    @classmethod
    async def start(cls, chain: Chain) -> Clock:
        return cls(chain, await chain.now())

    async def refresh(self) -> ChainTime:
        """Ask the chain. On ChainError the last known time stays."""
        self.time = await self._chain.now()
        return self.time

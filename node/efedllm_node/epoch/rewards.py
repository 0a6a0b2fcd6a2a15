"""Rewards and fees: enters our work of an epoch into its tally, claims the reward two epochs later, withdraws fees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efedllm.chain import Chain, ChainTime, format_amount
from efedllm.errors import ChainError
from efedllm.logs import get_logger
from efedllm_node.config import Policy
from efedllm_node.storage.store import NodeStore


@dataclass(frozen=True)
class EpochReward:
    """What is known of one epoch. `work`: what the escrow counted for us; `claimable` wei, None while unknown."""

    epoch: int
    weighed: bool
    claimed: bool
    work: int = 0
    claimable: int | None = None


def should_weigh(time: ChainTime, last: EpochReward) -> bool:
    """Whether the epoch before the running one has to be weighed now: work counts only if weighed in its tally."""
    return time.phase == 2 and last.epoch == time.epoch - 1 and last.work > 0 and not last.weighed


def to_claim(time: ChainTime, epochs: Sequence[EpochReward]) -> tuple[int, ...]:
    """Epochs whose reward can be claimed now."""
    return tuple(e.epoch for e in epochs if e.epoch <= time.epoch - 2 and not e.claimed and (e.claimable or 0) > 0)


def claim_range(time: ChainTime, lookback: int) -> range:
    """Epochs that may hold a reward now."""
    return range(max(1, time.epoch - 1 - lookback), max(1, time.epoch - 1))


async def claimable_epochs(chain: Chain, time: ChainTime, me: str, lookback: int = 64) -> dict[int, int]:
    """Wei that the account `me` can claim now, by epoch; epochs without a reward are left out."""
    found = {}
    for epoch in claim_range(time, lookback):
        amount = await chain.contracts.reward_pool.claimable(epoch, me)
        if amount:
            found[epoch] = amount
    return found


class RewardCollector:
    """Weighs, claims and withdraws when due. Claimed epochs are kept in the store, so nothing is claimed twice."""

    def __init__(self, chain: Chain, store: NodeStore, policy: Policy) -> None:
        self._chain = chain
        self._store = store
        self._policy = policy
        self._me = chain.account_address
        self._looked = 0
        self._withdrawn = 0
        self._log = get_logger("rewards")

    async def tick(self, time: ChainTime) -> None:
        """Do what is due. Raises ChainError: try again later."""
        if time.phase == 2:
            await self.weigh(time)
        if self._looked < time.epoch:
            await self.claim(time)
            self._looked = time.epoch
        if self._withdrawn < time.epoch and time.fraction < self._policy.settle_at:
            await self.withdraw_fees()
            self._withdrawn = time.epoch

    async def weigh(self, time: ChainTime) -> None:
        """Enter our work of the last epoch into its tally; pronounce the verdict first if nobody else does."""
        epoch = time.epoch - 1
        if epoch < 1:
            return
        weighed, claimed = await self._store.reward(epoch)
        work = 0 if weighed else await self._chain.contracts.session_escrow.work_of(epoch, self._me)
        if not should_weigh(time, EpochReward(epoch, weighed, claimed, work)):
            return
        try:
            await self._chain.contracts.reward_pool.weigh(epoch, [self._me])
        except ChainError as error:
            if error.code != "revert:NotFinalized":
                raise
            if time.fraction < self._policy.finalize_at:
                return
            await self._chain.contracts.verifier_committee.finalize(epoch, [self._me])
            await self._chain.contracts.reward_pool.weigh(epoch, [self._me])
        await self._store.mark_reward(epoch, weighed=1)
        self._log.info("weighed", epoch=epoch, work=work)

    async def claim(self, time: ChainTime) -> tuple[tuple[int, ...], int]:
        """Claim every due epoch: the epochs, and their wei."""
        epochs = []
        for epoch in claim_range(time, self._policy.claim_lookback):
            weighed, claimed = await self._store.reward(epoch)
            if claimed:
                continue
            amount = await self._chain.contracts.reward_pool.claimable(epoch, self._me)
            if amount == 0:
                # The epoch's tally is closed: nothing can be added to it.
                await self._store.mark_reward(epoch, claimed=1)
                continue
            epochs.append(EpochReward(epoch, weighed, claimed, claimable=amount))
        due = to_claim(time, epochs)
        total = sum(e.claimable or 0 for e in epochs if e.epoch in due)
        if due:
            await self._chain.contracts.reward_pool.claim(list(due))
            for epoch in due:
                await self._store.mark_reward(epoch, claimed=1)
            self._log.info("claimed", epochs=due, amount=format_amount(total))
        return due, total

    async def withdraw_fees(self) -> int:
        """Take the fees the escrow holds for us; wei, 0 when too few for a transaction."""
        owed = await self._chain.contracts.session_escrow.owed_of(self._me)
        if owed < self._policy.settle_min:
            return 0
        await self._chain.contracts.session_escrow.withdraw_fees(self._me)
        self._log.info("fees withdrawn", amount=format_amount(owed))
        return owed

"""Drives one epoch of a local network from work to payment. The clock moves on when all due events are on chain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from efedllm.chain import Chain, ChainEvent
from efedllm.errors import EfedError
from efedllm_deploy.devclock import DevClock

# Where things become due, as fractions of an epoch.
POST_AT = 0.71
POST_UNTIL = 0.90
PHASE = 1 / 3

STEP_SECONDS = 90.0
_LOOK_EVERY = 0.1
_NUDGE_AFTER = 2.5
# Events that the committee does not emit.
_HOMES = {"Weighed": "RewardPool", "SeedArmed": "SeatRegistry"}

Condition = Callable[[], Awaitable[bool]]


class EpochError(EfedError):
    """Something that an epoch should bring did not appear on chain in time."""


@dataclass(frozen=True)
class EpochWork:
    """What an epoch must show: who worked, and how much (wei) each session must have paid in all by its end."""

    epoch: int
    nodes: frozenset[str]
    paid: Mapping[bytes, int]


@dataclass
class EpochLog:
    """What was seen on chain during the epoch."""

    epoch: int
    verifiers: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class EpochDriver:
    """Needs a development chain. `clock` is the network's DevClock, `report` is told each step."""

    def __init__(self, chain: Chain, clock: DevClock, report: Callable[[str], None]) -> None:
        self._chain = chain
        self._clock = clock
        self._report = report
        self._log = EpochLog(0)

    async def start_next_epoch(self) -> int:
        """Go to the beginning of the next epoch and return its number."""
        return await self.start_epoch((await self._chain.now()).epoch + 1)

    async def start_epoch(self, epoch: int) -> int:
        """Go to the beginning of `epoch`, which must not be past, and return it."""
        await self._clock.skip_to(epoch, 0.01)
        return epoch

    async def run(self, work: EpochWork) -> EpochLog:
        """Drive `work.epoch` to its verdicts and pay-outs; ends early in the second epoch after it.

        Raises EpochError naming what is missing.
        """
        self._log = EpochLog(work.epoch)
        e, nodes = work.epoch, sorted(work.nodes)
        length = (await self._chain.now()).epoch_length
        await self._clock.skip_to(e, POST_AT)
        await self._until("batches posted", lambda: self._posted(e, work.nodes), (e, POST_UNTIL), length)
        await self._until("vouchers settled", lambda: self._settled(work.paid), (e, POST_UNTIL), length)

        await self._clock.skip_to(e + 1, 0.002)
        await self._until("audit seed armed", lambda: self._armed(e), (e + 1, PHASE * 0.3), length)
        await self._clock.mine(3)
        await self._until("audit seed fixed", lambda: self._seeded(e), (e + 1, PHASE * 0.4), length)
        verifiers = sorted({who for node in nodes for who in await self._chain.drawn(e, node)})
        self._log.verifiers = verifiers
        await self._until("audits committed", lambda: self._all("Committed", e, verifiers), None, length)
        await self._clock.skip_to_phase(e + 1, 1, 0.01)
        await self._until("verdicts revealed", lambda: self._all("Revealed", e, verifiers), None, length)
        await self._clock.skip_to_phase(e + 1, 2, 0.01)
        tally = (e + 1, 0.95)
        await self._until("verdicts final", lambda: self._final(e, nodes), tally, length)
        await self._until("verifiers judged", lambda: self._all("VerifierJudged", e, verifiers), tally, length)
        working = [node for node in nodes if await self._chain.contracts.session_escrow.work_of(e, node) > 0]
        await self._until("work weighed", lambda: self._weighed(e, working), tally, length)

        await self._clock.skip_to(e + 2, 0.01)
        await self._until("rewards claimed", lambda: self._claimed(e, nodes + verifiers), (e + 2, 0.3), length)
        await self._until("fees withdrawn", lambda: self._withdrawn(nodes), (e + 2, 0.5), length)
        return self._log

    async def _until(self, what: str, condition: Condition, limit: tuple[int, float] | None, length: int) -> None:
        """Wait for a condition. Duties that anyone may do are staggered in chain time: when nothing happens the clock
        is moved on a little, up to the fraction of the epoch in `limit`; None lets time flow by itself.
        """
        started = moved = time.monotonic()
        while not await condition():
            now = time.monotonic()
            if now - started > STEP_SECONDS:
                raise EpochError(
                    "epoch-stuck",
                    f"Epoch {self._log.epoch}: {what} was not seen on chain within {STEP_SECONDS:.0f} s.",
                    "See the logs of the nodes and verifiers.",
                )
            if limit is not None and now - moved > _NUDGE_AFTER:
                moved = now
                await self._nudge(limit, length)
            await asyncio.sleep(_LOOK_EVERY)
        self._log.seconds[what] = time.monotonic() - started
        self._report(f"epoch {self._log.epoch}: {what} ({self._log.seconds[what]:.1f} s)")

    async def _nudge(self, limit: tuple[int, float], length: int) -> None:
        chain_time = await self._clock.now()
        step = chain_time.fraction + 1 / 50
        if chain_time.epoch == limit[0] and step < limit[1] and length >= 50:
            await self._clock.skip_to(chain_time.epoch, step)

    # --- what is on chain ---

    async def _events(self, name: str, epoch: int) -> list[ChainEvent]:
        contract = _HOMES.get(name, "VerifierCommittee")
        return [event for event in await self._chain.history(contract, name) if event.args["epoch"] == epoch]

    async def _posted(self, epoch: int, nodes: Iterable[str]) -> bool:
        return set(nodes) <= {batch.node for batch in await self._chain.batches(epoch)}

    async def _settled(self, paid: Mapping[bytes, int]) -> bool:
        states = await asyncio.gather(*(self._chain.session(session) for session in paid))
        return all(state.settled >= wei for state, wei in zip(states, paid.values(), strict=True))

    async def _armed(self, epoch: int) -> bool:
        return bool(await self._events("SeedArmed", epoch)) or await self._seeded(epoch)

    async def _seeded(self, epoch: int) -> bool:
        return await self._chain.seed(epoch) is not None

    async def _all(self, name: str, epoch: int, verifiers: Iterable[str]) -> bool:
        return set(verifiers) <= {event.args["verifier"] for event in await self._events(name, epoch)}

    async def _final(self, epoch: int, nodes: Iterable[str]) -> bool:
        done = await asyncio.gather(
            *(self._chain.contracts.verifier_committee.is_finalized(epoch, node) for node in nodes)
        )
        return all(done)

    async def _weighed(self, epoch: int, nodes: Iterable[str]) -> bool:
        return set(nodes) <= {event.args["node"] for event in await self._events("Weighed", epoch)}

    async def _claimed(self, epoch: int, accounts: Iterable[str]) -> bool:
        left = await asyncio.gather(
            *(self._chain.contracts.reward_pool.claimable(epoch, account) for account in accounts)
        )
        return not any(left)

    async def _withdrawn(self, nodes: Iterable[str]) -> bool:
        left = await asyncio.gather(*(self._chain.contracts.session_escrow.owed_of(node) for node in nodes))
        return not any(left)

"""Opening canaries: in the reveal phase after their epoch, when every verdict is committed and none is final.

What to do is pure, and safe to repeat after a crash at any point: whether canaries were opened is read from the chain,
and the contract takes one opening for each epoch and node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from efedllm.chain import Chain, ChainTime
from efedllm.commitments import merkle
from efedllm.commitments.canary import canary_salt, sample_ppm
from efedllm.errors import ChainError
from efedllm.logs import get_logger
from efedllm_node.canaries.store import CanaryStore, OpeningRecord, PostedCanary
from efedllm_node.storage.store import Store

REVEAL = 1
MOST_FAILURES = 5
# Who attested without computing and sees an opening before it has revealed can keep silent, which costs it less: an
# opening waits for the drawn verifiers until this much of the phase is left, and at least so many seconds.
_MARGIN = 0.25
_LEAST_MARGIN = 15
# The chain could not be asked, so it refused nothing.
_UNSENT = frozenset({"rpc-down", "tx-timeout"})


@dataclass(frozen=True)
class OpeningView:
    """What the decision about the canaries of `epoch` depends on.

    leaves: of its canaries, in batches on chain. settled: no batch of the epoch waits to be found on chain or not.
    opened: the chain has our opening. awaited: a verifier drawn for us has committed and not revealed. seed: None as
    long as nothing is drawn for audits. rate_ppm: our audit rate.
    """

    epoch: int
    time: ChainTime
    leaves: tuple[bytes, ...]
    settled: bool
    opened: bool
    awaited: bool
    seed: bytes | None
    rate_ppm: int
    record: OpeningRecord


@dataclass(frozen=True)
class Open:
    """Open these leaves, in this order."""

    leaves: tuple[bytes, ...]


@dataclass(frozen=True)
class End:
    """Nothing more can or need be done: "opened", "unsampled" or "missed"."""

    how: str


OpeningStep = Open | End | None


def next_opening(view: OpeningView) -> OpeningStep:
    """The next thing to do for an epoch's canaries, None when there is nothing (yet).

    Leaves that no audit drew stay secret, and an epoch without a drawn one is not opened at all.
    """
    time, record = view.time, view.record
    early = time.epoch <= view.epoch or (time.epoch == view.epoch + 1 and time.phase < REVEAL)
    if early or not view.leaves or record.ended is not None:
        return None
    late = time.epoch > view.epoch + 1 or time.phase > REVEAL
    if view.opened:
        return End("opened") if late else None
    if view.seed is None:
        return End("unsampled") if late else None
    drawn = tuple(sorted({leaf for leaf in view.leaves if sample_ppm(view.seed, leaf) < view.rate_ppm}))
    if not drawn and view.settled:
        return End("unsampled")
    if late:
        return End("missed")
    if not view.settled or record.failures >= MOST_FAILURES or (view.awaited and not _last_moment(time)):
        return None
    return Open(drawn)


def _last_moment(time: ChainTime) -> bool:
    """Whether little of the reveal phase is left."""
    phase = time.epoch_length / 3
    left = time.epoch_start + 2 * phase - time.timestamp
    return left <= max(_MARGIN * phase, _LEAST_MARGIN)


class Opener:
    """Carries it out."""

    def __init__(self, chain: Chain, store: Store, canaries: CanaryStore) -> None:
        self._chain = chain
        self._store = store
        self._canaries = canaries
        self._me = chain.account_address
        self._log = get_logger("opener")

    async def tick(self, time: ChainTime) -> None:
        """Do what is due. Raises ChainError: try again later."""
        epoch = time.epoch - 1
        if time.phase < REVEAL or (await self._canaries.opening(epoch)).ended is not None:
            return
        posted = await self._posted(epoch)
        if posted:
            step = next_opening(await self._look(epoch, time, posted))
            await self._carry_out(epoch, step, posted)

    async def _posted(self, epoch: int) -> tuple[PostedCanary, ...]:
        """The epoch's canaries that went wrong: one that ended before has an ordinary salt."""
        found = []
        for item in await self._canaries.posted(epoch):
            consent, nonce = item.canary.consent, item.canary.nonce
            if item.salt == canary_salt(item.commit.job_id, item.commit.hop, consent, nonce):
                found.append(item)
        return tuple(found)

    async def _look(self, epoch: int, time: ChainTime, posted: Sequence[PostedCanary]) -> OpeningView:
        planned = await self._store.planned()
        seed = await self._chain.seed(epoch)
        opened = await self._chain.call("VerifierCommittee", "canaryOf", epoch, self._me)
        return OpeningView(
            epoch=epoch,
            time=time,
            leaves=tuple(item.leaf for item in posted),
            settled=planned is None or planned.epoch != epoch,
            opened=bool(opened),
            awaited=seed is not None and await self._awaited(epoch),
            seed=seed,
            rate_ppm=0 if seed is None else await self._chain.audit_rate(epoch, self._me),
            record=await self._canaries.opening(epoch),
        )

    async def _awaited(self, epoch: int) -> bool:
        """Whether one of the verifiers drawn for us may yet reveal."""
        history = await self._chain.history("VerifierCommittee", "Committed", "Revealed")
        events = [event for event in history if event.args["epoch"] == epoch]
        committed, revealed = (
            {event.args["verifier"] for event in events if event.name == name} for name in ("Committed", "Revealed")
        )
        pending = committed - revealed
        return bool(pending) and not pending.isdisjoint(await self._chain.drawn(epoch, self._me))

    async def _carry_out(self, epoch: int, step: OpeningStep, posted: Sequence[PostedCanary]) -> None:
        match step:
            case Open():
                by_leaf = {item.leaf: item for item in posted}
                await self._send(epoch, [by_leaf[leaf] for leaf in step.leaves])
            case End():
                record = await self._canaries.opening(epoch)
                await self._canaries.keep_opening(epoch, replace(record, ended=step.how))
                if step.how == "missed":
                    self._log.error(
                        "canaries were not opened in time: they will be judged as cheats",
                        epoch=epoch,
                        hint="Keep the node running, and its account in gas money, until the epoch after is over.",
                    )
                else:
                    self._log.info("canaries settled", epoch=epoch, how=step.how)

    async def _send(self, epoch: int, items: Sequence[PostedCanary]) -> None:
        try:
            await self._chain.send("CanaryRegistry", "open", epoch, [opening(item) for item in items])
        except ChainError as error:
            if error.code in _UNSENT:
                raise
            if error.code == "revert:AlreadyOpened":
                # An earlier process sent it; the next look at the chain says so.
                return
            record = await self._canaries.opening(epoch)
            record = replace(record, failures=record.failures + 1)
            await self._canaries.keep_opening(epoch, record)
            left = MOST_FAILURES - record.failures
            self._log.error(
                "canaries not opened",
                epoch=epoch,
                code=error.code,
                reason=error.message,
                tries_left=left,
                hint="Unless opened in this phase they are judged as cheats: see that the account can pay for gas.",
            )
            return
        # Not ended before the phase is over: a reorganisation can take the opening back.
        self._log.info("canaries opened", epoch=epoch, leaves=len(items))


def opening(item: PostedCanary) -> dict[str, Any]:
    """The Opening that CanaryRegistry.open takes."""
    return {
        "commit": item.commit,
        "job_seq": item.job_seq,
        "key": item.key,
        "consent": item.canary.consent,
        "nonce": item.canary.nonce,
        "seq": item.seq,
        "count": len(item.leaves),
        "index": item.index,
        "proof": merkle.proof(item.leaves, item.index),
    }

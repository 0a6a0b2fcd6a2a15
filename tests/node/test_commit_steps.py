"""What the batch poster does next, and what it does after a crash at any point, from literal states."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.chain.types import ChainTime
from efedllm_node.config import Policy
from efedllm_node.epoch.batch_poster import BatchView, Confirm, GiveUp, Plan, Release, Send, Step, next_step
from efedllm_node.epoch.rewards import EpochReward, claim_range, should_weigh, to_claim
from efedllm_node.storage.records import BatchRecord

POLICY = Policy()


def at(epoch: int, fraction: float) -> ChainTime:
    return ChainTime(1, 1000 * epoch + round(1000 * fraction), epoch, int(3 * fraction), 1000 * epoch, 1000)


BATCH = BatchRecord(1, seq=7, epoch=5, root=b"r" * 32, count=2, status="planned")
IDLE = BatchView(
    time=at(5, 0.5), next_seq=7, planned=None, landed=False, leaf_epochs=(5, 5), posted_epoch=4, draining=False
)
PENDING = replace(IDLE, planned=BATCH, time=at(5, 0.75))


@pytest.mark.parametrize(
    ("view", "step"),
    [
        (IDLE, None),
        (replace(IDLE, time=at(5, 0.70)), Plan(7, 5, (0, 1))),
        (replace(IDLE, time=at(5, 0.93)), None),
        (replace(IDLE, draining=True), Plan(7, 5, (0, 1))),
        (replace(IDLE, draining=True, time=at(5, 0.93)), None),
        (replace(IDLE, time=at(5, 0.70), posted_epoch=5), None),
        (replace(IDLE, posted_epoch=5, draining=True), Plan(7, 5, (0, 1))),
        (replace(IDLE, time=at(5, 0.70), leaf_epochs=()), None),
        # The clock lags: what was committed in the next epoch waits for it.
        (replace(IDLE, time=at(5, 0.70), leaf_epochs=(5, 6)), Plan(7, 5, (0,))),
        # More than a batch holds: what the epoch before left over follows in the same epoch.
        (replace(IDLE, time=at(6, 0.75), posted_epoch=6, leaf_epochs=(5, 6)), Plan(7, 6, (0, 1))),
        (replace(IDLE, time=at(6, 0.75), posted_epoch=6, leaf_epochs=(6, 6)), None),
        # Auditors take commitments of the epoch before, no older ones.
        (replace(IDLE, time=at(6, 0.70)), Plan(7, 6, (0, 1))),
        (replace(IDLE, time=at(7, 0.10)), GiveUp((0, 1))),
        (replace(IDLE, time=at(7, 0.70), leaf_epochs=(5, 7)), GiveUp((0,))),
        (PENDING, Send(BATCH)),
        (replace(PENDING, time=at(5, 0.93)), None),
        (replace(PENDING, next_seq=8, landed=True), Confirm(BATCH)),
        (replace(PENDING, next_seq=8, landed=False), Release(BATCH)),
        (replace(PENDING, time=at(6, 0.10), next_seq=8, landed=True), Confirm(BATCH)),
        (replace(PENDING, time=at(6, 0.10)), Release(BATCH)),
        (replace(PENDING, next_seq=6), Release(BATCH)),
    ],
)
def test_next_step(view: BatchView, step: Step) -> None:
    assert next_step(view, POLICY) == step


@dataclass
class World:
    """A chain and a disk, and a node that may die between any two steps."""

    time: ChainTime
    chain: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)  # (seq, epoch, leaves)
    planned: tuple[BatchRecord, tuple[int, ...]] | None = None
    waiting: list[tuple[int, int]] = field(default_factory=list)  # (leaf, epoch)
    lost: list[int] = field(default_factory=list)
    posted_epoch: int = 0

    def step(self, dies: bool) -> bool:
        """One step; with `dies` the process ends right after its effect on the chain. False when nothing is due."""
        planned = self.planned[0] if self.planned else None
        landed = planned is not None and any((s, e) == (planned.seq, planned.epoch) for s, e, _ in self.chain)
        view = BatchView(
            self.time,
            len(self.chain),
            planned,
            landed,
            tuple(epoch for _, epoch in self.waiting),
            self.posted_epoch,
            False,
        )
        match next_step(view, POLICY):
            case Plan(seq, epoch, places):
                chosen = tuple(self.waiting[i][0] for i in places)
                self.planned = (BatchRecord(0, seq, epoch, b"", len(chosen), "planned"), chosen)
                self.waiting = [leaf for i, leaf in enumerate(self.waiting) if i not in places]
            case Send(batch):
                assert self.planned is not None
                assert batch.seq == len(self.chain)
                self.chain.append((batch.seq, self.time.epoch, self.planned[1]))
                return not dies
            case Confirm(batch):
                self.planned, self.posted_epoch = None, max(self.posted_epoch, batch.epoch)
            case Release(batch):
                assert self.planned is not None
                self.waiting += [(leaf, batch.epoch) for leaf in self.planned[1]]
                self.planned = None
            case GiveUp(places):
                self.lost += [self.waiting[i][0] for i in places]
                self.waiting = [leaf for i, leaf in enumerate(self.waiting) if i not in places]
            case None:
                return False
        return True


@given(st.lists(st.tuples(st.sampled_from(["job", "step", "die", "late"]), st.integers(1, 3)), max_size=40))
def test_no_leaf_is_posted_twice_or_forgotten(events: list[tuple[str, int]]) -> None:
    world = World(at(1, 0.1))
    leaves = 0
    for kind, amount in events:
        match kind:
            case "job":
                for _ in range(amount):
                    world.waiting.append((leaves, world.time.epoch))
                    leaves += 1
            case "step" | "die":
                world.time = at(world.time.epoch, 0.75)
                for _ in range(amount):
                    world.step(dies=kind == "die")
            case "late":
                world.time = at(world.time.epoch + 1, 0.1)
    world.time = at(world.time.epoch, 0.75)
    while world.step(dies=False):
        pass
    posted = [leaf for _, _, batch in world.chain for leaf in batch]
    left = [leaf for leaf, _ in world.waiting] + world.lost + list(world.planned[1] if world.planned else ())
    assert sorted(posted + left) == list(range(leaves))
    assert [seq for seq, _, _ in world.chain] == list(range(len(world.chain)))


@pytest.mark.parametrize(
    ("reward", "fraction", "due"),
    [
        (EpochReward(4, weighed=False, claimed=False, work=10), 0.7, True),
        (EpochReward(4, weighed=False, claimed=False, work=10), 0.6, False),
        (EpochReward(4, weighed=True, claimed=False, work=10), 0.7, False),
        (EpochReward(4, weighed=False, claimed=False, work=0), 0.7, False),
        (EpochReward(3, weighed=False, claimed=False, work=10), 0.7, False),
    ],
)
def test_work_is_weighed_in_the_tally_of_the_next_epoch(reward: EpochReward, fraction: float, due: bool) -> None:
    assert should_weigh(at(5, fraction), reward) is due


def test_rewards_are_claimed_from_two_epochs_later_on() -> None:
    epochs = [
        EpochReward(2, True, True, claimable=9),
        EpochReward(3, True, False, claimable=9),
        EpochReward(4, True, False, claimable=9),
        EpochReward(1, True, False, claimable=0),
    ]
    assert to_claim(at(5, 0.1), epochs) == (3,)
    assert list(claim_range(at(5, 0.1), 64)) == [1, 2, 3]
    assert list(claim_range(at(100, 0.1), 3)) == [96, 97, 98]
    assert list(claim_range(at(1, 0.1), 3)) == []

"""Which waiting positions go into the next forward pass. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """One job's positions that could run now. `rounds`: forward passes it has waited since it was last served;
    `whole`: they run in one pass or not at all."""

    key: bytes
    positions: int
    rounds: int
    whole: bool = False


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one forward pass."""

    tokens: int
    jobs: int
    chunk: int
    starvation: int


@dataclass(frozen=True)
class Share:
    """How many positions of a job run in this pass."""

    key: bytes
    positions: int


def plan_batch(waiting: Sequence[Waiting], limits: BatchLimits) -> tuple[Share, ...]:
    """The next ragged batch, within `limits`.

    Order: jobs passed over too often, then single positions (a person waits for each of those), then prompts; the
    longest waiting first within each group. Prompts are cut into chunks, so that they delay nobody by more than one;
    those that must be whole wait for a pass with room, and a longer one than any pass has runs alone.
    """
    order = sorted(
        (w for w in waiting if w.positions > 0),
        key=lambda w: (w.rounds < limits.starvation, w.positions > 1, -w.rounds, w.key),
    )
    room = limits.tokens
    shares: list[Share] = []
    for item in order[: limits.jobs]:
        n = min(item.positions, limits.chunk, room)
        if item.whole:
            n = item.positions if item.positions <= room or not shares else 0
        if n == 0:
            break
        shares.append(Share(item.key, n))
        room -= n
    return tuple(shares)

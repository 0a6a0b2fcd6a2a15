"""When a node shows the taps it committed to, and what it shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from efedllm.chain import ChainTime
from efedllm.commitments.taps import TapOpening, TapTree
from efedllm.engine.taps import TAP_BYTES

_REVEAL = 1


def taps_open(audited: int | None, now: ChainTime) -> bool:
    """Whether the verifiers of a batch of epoch `audited` can no longer commit: the commit phase of the next epoch is
    over. False for a leaf that no batch on chain holds: it may still be audited.
    """
    if audited is None:
        return False
    return now.epoch > audited + 1 or (now.epoch == audited + 1 and now.phase >= _REVEAL)


def open_taps(job_id: bytes, hop: int, rows: bytes, positions: Sequence[int]) -> list[TapOpening]:
    """The taps of `positions` among `rows`, those of all positions of a job, each with its proof under the aux root."""
    tree = TapTree(job_id, hop, TAP_BYTES)
    tree.append(rows)
    return [
        TapOpening(position, rows[position * TAP_BYTES : (position + 1) * TAP_BYTES], tree.proof(position))
        for position in positions
    ]

"""What the observer must have read before it lets an audit begin."""

from __future__ import annotations

import pytest

from efedllm.chain.types import BatchInfo
from efedllm_verifier.chain_view import none_missing

A, B = "0x" + "Aa" * 20, "0x" + "0B" * 20


def batch(node: str, seq: int, epoch: int = 7) -> BatchInfo:
    return BatchInfo(node, epoch, seq, bytes(32), 1, 1)


@pytest.mark.parametrize(
    ("posted", "next_seq", "complete"),
    [
        ([batch(A, 4), batch(A, 5)], {A: 6}, True),
        # The newest log has not reached the server that answered.
        ([batch(A, 4)], {A: 6}, False),
        # It came with the batch of the next epoch, or the one before it did not.
        ([batch(A, 4), batch(A, 5), batch(A, 6, 8)], {A: 6}, True),
        ([batch(A, 4), batch(A, 6, 8)], {A: 7}, False),
        # The state that was asked first is older than the logs.
        ([batch(A, 4), batch(A, 5)], {A: 5}, True),
        ([batch(A, 0), batch(B, 9)], {A: 1, B: 10}, True),
        ([batch(A, 0), batch(B, 9)], {A: 1, B: 11}, False),
        # All logs of a node vanished between two answers.
        ([batch(B, 9)], {A: 1, B: 10}, False),
        ([], {}, True),
    ],
)
def test_an_audit_begins_when_no_batch_is_missing(
    posted: list[BatchInfo], next_seq: dict[str, int], complete: bool
) -> None:
    assert none_missing(posted, next_seq) is complete

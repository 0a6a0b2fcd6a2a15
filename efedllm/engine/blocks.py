"""Cutting the packed tokens of a step into blocks, so that what a layer makes of one block stays in cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Block(Generic[C]):
    """Rows of the packed batch, and whose they are: `counts[i]` positions of `caches[i]`, the first one `offsets[i]`
    after the committed ones.
    """

    rows: slice
    caches: tuple[C, ...]
    counts: tuple[int, ...]
    offsets: tuple[int, ...]


def token_blocks(caches: Sequence[C], counts: Sequence[int], size: int) -> list[Block[C]]:
    """Blocks of at most `size` rows, all nearly as long, in order: a layer may run them one after the other, because a
    position looks only at earlier ones.
    """
    total = sum(counts)
    number = -(-total // size)
    bounds = [total * i // number for i in range(number + 1)]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    blocks: list[Block[C]] = []
    for low, high in pairwise(bounds):
        members = [
            (cache, min(high, end) - max(low, start), max(low, start) - start)
            for cache, (start, end) in zip(caches, pairwise(starts), strict=True)
            if start < high and low < end
        ]
        kept, sizes, offsets = zip(*members, strict=True)
        blocks.append(Block(slice(low, high), kept, sizes, offsets))
    return blocks

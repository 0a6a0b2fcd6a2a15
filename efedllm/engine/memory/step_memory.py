"""How much memory a step takes beside weights and caches: upper bounds, for staying within a budget. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.engine.base import EngineShape
from efedllm.models.manifest import Manifest

LIBRARY_SCRATCH = 24 << 20
"""Bytes that BLAS and the allocator hold beside what we ask for: packing buffers, freed pieces not yet returned."""

_EXACT_ROWS = 32
"""Queries that the exact profile scores together."""


@dataclass(frozen=True)
class Working:
    """`width`: outputs of all matrices of the widest layer, per token; `block`: tokens computed at once; `exact`: which
    profile's temporaries to count.
    """

    shape: EngineShape
    width: int
    block: int
    exact: bool

    def step(self, rows: int, longest: int) -> int:
        """Bytes of activations of a step over `rows` tokens, the longest sequence then having `longest` positions."""
        shape = self.shape
        block = min(rows, self.block)
        number = 8 if self.exact else 4
        # In and out of the layers, their float copy, and the rotary angles of every token.
        packed = LIBRARY_SCRATCH + rows * (4 * 4 * shape.hidden + 6 * number * shape.head_dim)
        inside = block * self._per_token()
        if self.exact:
            widened = 2 * 8 * shape.kv_heads * longest * shape.head_dim
            scores = min(block, _EXACT_ROWS) * shape.heads * longest * (3 * 8 + 3 * 4)
            return packed + inside + widened + scores
        # Key heads repeated for their query heads, and the mask as bool and as float.
        repeated = 2 * 4 * shape.heads * longest * shape.head_dim if rows > 1 else 0
        return packed + inside + repeated + block * longest * 5

    def block_within(self, total: int) -> int:
        """The block, or a smaller one of at least 16 tokens whose activations take about `total` bytes."""
        return min(self.block, max(16, total // self._per_token()))

    def _per_token(self) -> int:
        """Bytes of what one layer makes of one token."""
        if self.exact:
            return 8 * (5 * self.width + 8 * self.shape.hidden)
        return 4 * (2 * self.width + 8 * self.shape.hidden)

    def logits(self, rows: int) -> int:
        """Bytes of the head's result over `rows` tokens, with its temporaries."""
        return LIBRARY_SCRATCH + rows * (self.shape.vocab * (32 if self.exact else 8) + self.shape.hidden * 32)


def widest(manifest: Manifest, lo: int, hi: int) -> int:
    """The `width` of layers [lo, hi)."""
    widths = [0] * (hi - lo)
    for tensor in manifest.tensors_for(lo, hi):
        if lo <= tensor.layer < hi and tensor.cols > 1:
            widths[tensor.layer - lo] += tensor.rows + tensor.rank
    return max(widths)

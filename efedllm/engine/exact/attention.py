"""Exact causal attention of one sequence: integer scores, own 2^z, integer probabilities and denominators."""

from __future__ import annotations

import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import exp2
from efedllm.engine.exact.cache import CachedLayer

_DENOMINATOR_BITS = 24
_WEIGHT_BITS = 20
_ROWS = 32
"""Queries that are scored together. Changes memory and speed, never the result."""


def attend(query: Tensor, query_factor: Tensor, layer: CachedLayer, window: int | None) -> Tensor:
    """The last n of the cached positions look back; with a window w, position p sees p - w + 1..p.

    query: integers float64 [n, heads, dim]. query_factor float64 [n, heads]: their scale, times the softmax scaling,
    times log2(e). Returns float64 [n, heads * dim].
    """
    n, heads, dim = query.shape
    total = layer.keys.shape[1]
    start = 0 if window is None else max(0, total - n - window + 1)
    keys = layer.keys[:, start:].double()
    values = layer.values[:, start:].double()
    key_scales, value_scales = layer.key_scales[:, start:], layer.value_scales[:, start:]
    outputs: list[Tensor] = []
    for first in range(0, n, _ROWS):
        rows = min(_ROWS, n - first)
        # Position, relative to `start`, of the first query, and the range that any of the rows sees.
        at = total - n + first - start
        low = 0 if window is None else max(0, at - window + 1)
        seen = slice(low, at + rows)
        outputs.append(
            _rows(
                query[first : first + rows],
                query_factor[first : first + rows],
                CachedLayer(keys[:, seen], values[:, seen], key_scales[:, seen], value_scales[:, seen]),
                _mask(rows, at - low, window, query.device),
            )
        )
    return torch.cat(outputs).reshape(n, heads * dim)


def _mask(rows: int, at: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [rows, m], for the last m keys: True where query i, at key at + i, must not look. Every query sees the keys
    before those; None when it sees all."""
    if rows == 1:
        return None
    if window is None:
        return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1)
    seen = torch.ones(rows, at + rows, dtype=torch.bool, device=device)
    return ~seen.tril(at).triu(at - window + 1)


def _rows(query: Tensor, factor: Tensor, layer: CachedLayer, hidden: Tensor | None) -> Tensor:
    """query [rows, heads, dim], factor [rows, heads], everything float64 -> [rows, heads, dim]."""
    rows, heads, dim = query.shape
    kv_heads = layer.keys.shape[0]
    # Query heads that share a key head become the rows of one product: [kv heads, heads / kv heads * rows, ...].
    packed = query.view(rows, kv_heads, -1, dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, dim)
    factors = factor.view(rows, kv_heads, -1).permute(1, 2, 0).reshape(kv_heads, -1, 1)
    # Sums of integers below 2^30 * dim.
    scores = torch.bmm(packed, layer.keys.transpose(1, 2))
    scores.mul_(layer.key_scales.unsqueeze(1)).mul_(factors)
    _hide(scores, hidden, -torch.inf)
    parts = exp2(scores.sub_(scores.amax(-1, keepdim=True)).float())
    _hide(parts, hidden, 0.0)
    # The scale of each value goes into its weight, so that what is summed over positions are integers.
    weights = parts.double().mul_(layer.value_scales.unsqueeze(1))
    largest = weights.amax(-1, keepdim=True)
    # w * 2^20 / W, in one division: scaling by a power of two rounds nothing.
    whole = weights.div_(largest * 2.0**-_WEIGHT_BITS).round_()
    denominator = parts.mul_(2.0**_DENOMINATOR_BITS).round_().sum(-1, keepdim=True, dtype=torch.float64)
    sums = torch.bmm(whole, layer.values)
    out = sums.mul_(largest.mul_(2.0 ** (_DENOMINATOR_BITS - _WEIGHT_BITS))).div_(denominator)
    return out.view(kv_heads, -1, rows, dim).permute(2, 0, 1, 3).reshape(rows, heads, dim)


def _hide(scores: Tensor, hidden: Tensor | None, value: float) -> None:
    """Write `value` where scores [kv heads, heads / kv heads * rows, keys] are `hidden` [rows, last keys]."""
    if hidden is not None:
        rows, keys = hidden.shape
        grouped = scores.view(scores.shape[0], -1, rows, scores.shape[2])
        grouped[..., -keys:].masked_fill_(hidden, value)

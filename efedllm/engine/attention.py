"""Attention over a ragged batch: all tokens of all sequences in one row, each sequence with its own key/value cache.

Plugged into transformers through its attention interface, so that no model code is copied. The engine packs the
batch as [1, total]; the layers' projections run on all tokens at once and only this function looks at single sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from efedllm.engine.cache import KVCache

ATTENTION_NAME = "efedllm_ragged"


@dataclass(frozen=True)
class Ragged:
    """The packed tokens: `counts[i]` new positions for `caches[i]`, in packing order, at `offsets[i]` after its
    committed ones; cache slot 0 is `first_layer`.
    """

    caches: tuple[KVCache, ...]
    counts: tuple[int, ...]
    offsets: tuple[int, ...]
    first_layer: int


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    ragged: Ragged,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention per sequence.

    query [1, heads, total, d], key and value [1, kv heads, total, d] -> [1, total, heads, d].

    With a sliding window w, position p sees positions p-w+1..p, as in transformers. `attention_mask` is unused: the
    mask follows from the positions.
    """
    del attention_mask
    slot = int(module.layer_idx) - ragged.first_layer  # type: ignore[arg-type]
    outputs: list[Tensor] = []
    start = 0
    for cache, count, offset in zip(ragged.caches, ragged.counts, ragged.offsets, strict=True):
        rows = slice(start, start + count)
        keys, values = cache.append(slot, key[0, :, rows], value[0, :, rows], offset)
        # The cache holds float32, which has every bfloat16 number.
        keys, values = keys.to(query.dtype), values.to(query.dtype)
        outputs.append(_attend(query[0, :, rows], keys, values, scaling, sliding_window))
        start += count
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0), None


def _attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """query [heads, n, d]: the last n of the positions in keys, values [kv heads, total, d]. Returns [heads, n, d]."""
    heads, n, dim = query.shape
    kv_heads, total, _ = keys.shape
    if window is not None and total > window + n - 1:
        # The oldest query, at position total - n, sees nothing before total - n - window + 1.
        keys, values = keys[:, -(window + n - 1) :], values[:, -(window + n - 1) :]
        total = window + n - 1
    if n == 1:
        # One query sees every remaining key: query heads that share keys become the rows of one small product.
        packed = query.reshape(1, kv_heads, heads // kv_heads, dim)
        out = scaled_dot_product_attention(packed, keys.unsqueeze(0), values.unsqueeze(0), scale=scaling)
        return out.reshape(heads, 1, dim)
    groups = heads // kv_heads
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=0)
        values = values.repeat_interleave(groups, dim=0)
    whole = n == total and (window is None or window >= total)
    mask = None if whole else _mask(n, total, window).to(query.device)
    out = scaled_dot_product_attention(
        query.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, is_causal=whole, scale=scaling
    )
    return out[0]


def _mask(n: int, total: int, window: int | None) -> Tensor:
    """bool [n, total], True where query i (at position total - n + i) sees key j."""
    mask = torch.ones(n, total, dtype=torch.bool).tril(total - n)
    return mask if window is None else mask.triu(total - n - window + 1)


AttentionInterface.register(ATTENTION_NAME, ragged_attention)

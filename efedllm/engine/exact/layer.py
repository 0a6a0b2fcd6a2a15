"""One decoder layer in the exact profile, of the Llama family or of GPT-2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import LOG2_E, canonical, gelu_tanh, layer_norm, quantize, rms_norm, silu
from efedllm.engine.exact.attention import attend
from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.linear import Linears
from efedllm.engine.exact.rope import rotate
from efedllm.engine.exact.tap import Tap

Member = tuple[ExactCache, int, int]
"""A sequence's cache, how many of the tokens are its own, and where they go after the committed positions."""

Angles = tuple[Tensor, Tensor]
"""cos, sin of every token, float64 [n, 1, head dim / 2]."""


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm, or LayerNorm when it has a bias; weight and bias float64 [d]."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)

    @property
    def held(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


@dataclass(frozen=True, eq=False)
class Attention:
    """`qkv` maps to queries, keys and values, side by side. Head norms are Qwen3's, else None. `scaling` multiplies the
    scores; a query sees `window` positions, or all."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    window: int | None
    qkv: Linears
    query_norm: Norm | None
    key_norm: Norm | None
    out: Linears

    def __call__(self, x: Tensor, angles: Angles | None, slot: int, batch: list[Member]) -> Tensor:
        """x float64 [n, hidden]; `angles` are None for a model without rotary embeddings."""
        integers, scales = quantize(self._turned(self.qkv(x).view(len(x), -1, self.head_dim), angles))
        scales = scales.squeeze(-1)
        parts = [self.heads, self.kv_heads, self.kv_heads]
        query, key, value = torch.split(integers, parts, dim=1)
        query_scales, key_scales, value_scales = torch.split(scales, parts, dim=1)
        factors = query_scales * (self.scaling * LOG2_E)
        outputs: list[Tensor] = []
        start = 0
        for cache, count, offset in batch:
            rows = slice(start, start + count)
            cached = cache.append(
                slot,
                offset,
                key[rows].transpose(0, 1),
                value[rows].transpose(0, 1),
                key_scales[rows].t(),
                value_scales[rows].t(),
            )
            outputs.append(attend(query[rows], factors[rows], cached, self.window))
            start += count
        return self.out(outputs[0] if len(outputs) == 1 else torch.cat(outputs))

    def _turned(self, heads: Tensor, angles: Angles | None) -> Tensor:
        """Queries, keys and values [n, heads, dim] with the first two normed and turned by their positions."""
        if angles is None:
            return heads
        turning = heads[:, : self.heads + self.kv_heads]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turning[:, : self.heads], turning[:, self.heads :]
            turning = torch.cat([self.query_norm(query), self.key_norm(key)], dim=1)
        return torch.cat([rotate(turning, *angles), heads[:, self.heads + self.kv_heads :]], dim=1)

    @property
    def held(self) -> list[Tensor]:
        norms = [n for n in (self.query_norm, self.key_norm) if n is not None]
        return [*self.qkv.held, *self.out.held, *(t for norm in norms for t in norm.held)]


@dataclass(frozen=True, eq=False)
class Mlp:
    """down(silu(gate) * up) with `up` mapping to gate and up side by side; down(gelu(up)) when it is not `gated`."""

    gated: bool
    up: Linears
    down: Linears

    def hidden(self, x: Tensor) -> Tensor:
        """float64 [n, hidden] -> what `down` reads, float64 [n, width]."""
        y = self.up(x)
        if not self.gated:
            return gelu_tanh(y)
        gate, up = y.chunk(2, dim=1)
        return silu(gate).mul_(up)

    @property
    def held(self) -> list[Tensor]:
        return [*self.up.held, *self.down.held]


@dataclass(frozen=True, eq=False)
class ExactLayer:
    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp

    def __call__(
        self,
        x: Tensor,
        angles: Angles | None,
        slot: int,
        batch: list[Member],
        tap: Tap | None = None,
    ) -> Tensor:
        """x float32 [total, hidden], the new tokens of all sequences in a row; returns the same shape.

        `batch`: whose tokens they are; `slot`: this layer's place in the caches; `tap` is given
        the MLP's hidden rows.
        """
        wide = x.double()
        x = canonical(wide + self.attention(self.attention_norm(wide), angles, slot, batch))
        wide = x.double()
        hidden = self.mlp.hidden(self.mlp_norm(wide))
        if tap is not None:
            tap.take(hidden)
        return canonical(wide + self.mlp.down(hidden))

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        return [*self.attention_norm.held, *self.attention.held, *self.mlp_norm.held, *self.mlp.held]

"""One decoder layer in the exact profile, of the Llama family or of GPT-2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.linear import Linears
from efedllm.engine.exact.steps import Angles, Heads, Norm, Steps
from efedllm.engine.taps import TapCollector

Member = tuple[ExactCache, int, int]
"""A sequence's cache, how many of the tokens are its own, and where they go after the committed positions."""


@dataclass(frozen=True, eq=False)
class Attention:
    """`qkv` maps to queries, keys and values, side by side."""

    heads: Heads
    qkv: Linears
    out: Linears

    def __call__(self, steps: Steps, x: Tensor, angles: Angles | None, slot: int, batch: list[Member]) -> Tensor:
        """x float64 [n, hidden]; `angles` are None for a model without rotary embeddings."""
        integers, scales = steps.quantized(self.heads, self.qkv(x), angles)
        first, last = self.heads.heads, self.heads.heads + self.heads.kv_heads
        outputs: list[Tensor] = []
        start = 0
        for cache, count, offset in batch:
            own, sizes = integers[start : start + count], scales[start : start + count]
            cached = cache.append(
                slot,
                offset,
                own[:, first:last].transpose(0, 1),
                own[:, last:].transpose(0, 1),
                sizes[:, first:last].t(),
                sizes[:, last:].t(),
            )
            outputs.append(steps.attend(self.heads, own[:, :first], sizes[:, :first], cached))
            start += count
        return self.out(outputs[0] if len(outputs) == 1 else torch.cat(outputs))

    @property
    def held(self) -> list[Tensor]:
        norms = [n for n in (self.heads.query_norm, self.heads.key_norm) if n is not None]
        return [*self.qkv.held, *self.out.held, *(t for norm in norms for t in norm.held)]


@dataclass(frozen=True, eq=False)
class Mlp:
    """down(silu(gate) * up) with `up` mapping to gate and up side by side; down(gelu(up)) when it is not `gated`."""

    gated: bool
    up: Linears
    down: Linears

    def hidden(self, steps: Steps, x: Tensor) -> Tensor:
        """float64 [n, hidden] -> what `down` reads, float64 [n, width]."""
        y = self.up(x)
        return steps.gated(y) if self.gated else steps.gelu(y)

    @property
    def held(self) -> list[Tensor]:
        return [*self.up.held, *self.down.held]


@dataclass(frozen=True, eq=False)
class ExactLayer:
    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    steps: Steps

    def __call__(
        self, x: Tensor, angles: Angles | None, slot: int, batch: list[Member], tap: TapCollector | None = None
    ) -> Tensor:
        """x float32 [total, hidden], the new tokens of all sequences in a row; returns the same shape.

        `batch`: whose tokens they are; `slot`: this layer's place in the caches; `tap` is given the MLP's hidden rows.
        """
        steps = self.steps
        x = steps.add(x, self.attention(steps, steps.norm(self.attention_norm, x), angles, slot, batch))
        hidden = self.mlp.hidden(steps, steps.norm(self.mlp_norm, x))
        if tap is not None:
            tap.take(steps.tap(hidden, tap.coordinates(hidden.shape[1])))
        return steps.add(x, self.mlp.down(hidden))

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        return [*self.attention_norm.held, *self.attention.held, *self.mlp_norm.held, *self.mlp.held]

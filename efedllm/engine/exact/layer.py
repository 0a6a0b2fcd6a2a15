"""One decoder layer of the Llama family in the exact profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import LOG2_E, canonical, quantization_scale, quantize, rms_norm, silu
from efedllm.engine.exact.attention import attend
from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.linear import Linears
from efedllm.engine.exact.rope import rotate
from efedllm.engine.taps import tap_coordinates


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm; weight float64 [d]."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Tap:
    """Takes the canonical tap bytes of the rows of one layer pass; see `engine.taps`."""

    def __init__(self, weights_root: bytes, layer: int) -> None:
        self._root = weights_root
        self._layer = layer
        self._rows: npt.NDArray[np.uint8] | None = None

    def take(self, hidden: Tensor) -> None:
        """hidden float64 [n, width]."""
        scale = quantization_scale(hidden)
        where = torch.tensor(tap_coordinates(self._root, self._layer, hidden.shape[1]))
        integers = (hidden[:, where] / scale).round_().to(torch.int16)
        parts = [scale.numpy().astype("<f8").view(np.uint8), integers.numpy().astype("<i2").view(np.uint8)]
        self._rows = np.concatenate(parts, axis=1)

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """uint8 [n, TAP_BYTES] of the rows taken."""
        assert self._rows is not None
        return self._rows


@dataclass(frozen=True, eq=False)
class ExactLayer:
    """`qkv` maps to queries, keys, values; `gate_up` to gate, up. Head norms are Qwen3's, else None."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    window: int | None
    attention_norm: Norm
    qkv: Linears
    query_norm: Norm | None
    key_norm: Norm | None
    out: Linears
    mlp_norm: Norm
    gate_up: Linears
    down: Linears

    def __call__(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        slot: int,
        batch: list[tuple[ExactCache, int]],
        tap: Tap | None = None,
    ) -> Tensor:
        """x float32 [total, hidden], the new tokens of all sequences in a row; returns the same shape.

        `angles`: cos, sin of every token; `batch`: caches and how many of the tokens are theirs; `slot`: this layer's
        place in the caches; `tap` is given the MLP's hidden rows.
        """
        wide = x.double()
        x = canonical(wide + self._attention(self.attention_norm(wide), angles, slot, batch))
        wide = x.double()
        gate, up = self.gate_up(self.mlp_norm(wide))
        hidden = silu(gate).mul_(up)
        if tap is not None:
            tap.take(hidden)
        return canonical(wide + self.down(hidden)[0])

    def _attention(
        self, x: Tensor, angles: tuple[Tensor, Tensor], slot: int, batch: list[tuple[ExactCache, int]]
    ) -> Tensor:
        query, key, value = (y.view(len(x), -1, self.head_dim) for y in self.qkv(x))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        turned = rotate(torch.cat([query, key], dim=1), *angles)
        integers, scales = quantize(torch.cat([turned, value], dim=1))
        scales = scales.squeeze(-1)
        parts = [self.heads, self.kv_heads, self.kv_heads]
        query, key, value = torch.split(integers, parts, dim=1)
        query_scales, key_scales, value_scales = torch.split(scales, parts, dim=1)
        factors = query_scales * (self.scaling * LOG2_E)
        outputs: list[Tensor] = []
        start = 0
        for cache, count in batch:
            rows = slice(start, start + count)
            cached = cache.append(
                slot,
                key[rows].transpose(0, 1),
                value[rows].transpose(0, 1),
                key_scales[rows].t(),
                value_scales[rows].t(),
            )
            outputs.append(attend(query[rows], factors[rows], cached, self.window))
            start += count
        return self.out(torch.cat(outputs))[0]

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        norms = [self.attention_norm, self.mlp_norm, self.query_norm, self.key_norm]
        linears = [self.qkv, self.out, self.gate_up, self.down]
        return [n.weight for n in norms if n is not None] + [t for linear in linears for t in linear.held]

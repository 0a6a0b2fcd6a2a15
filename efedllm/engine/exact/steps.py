"""The steps of a layer between its products, in torch or in C: the same numbers, docs/exact.md says which."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import (
    LOG2_E,
    canonical,
    gelu_tanh,
    layer_norm,
    quantization_scale,
    quantize,
    rms_norm,
    silu,
)
from efedllm.engine.exact.attention import attend
from efedllm.engine.exact.cache import CachedLayer
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.rope import rotate
from efedllm.kernels.steps import MOST_DIM, CCached, StepsLibrary, steps_library

Angles = tuple[Tensor, Tensor]
"""cos, sin of every token, float64 [n, 1, head dim / 2]."""


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm, or LayerNorm when it has a bias; weight and bias float64 [d]."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """float64 [..., d] -> the same shape."""
        if self.bias is None:
            return rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)

    @property
    def held(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of an attention: `scaling` multiplies the scores; a query sees `window` positions, or all. Head norms
    are Qwen3's, else None."""

    heads: int
    kv_heads: int
    dim: int
    scaling: float
    window: int | None
    query_norm: Norm | None
    key_norm: Norm | None

    @property
    def together(self) -> int:
        """Queries, keys and values."""
        return self.heads + 2 * self.kv_heads


class Steps(Protocol):
    """States x are float32 [n, hidden], everything else float64 unless said."""

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        """float32 or float64 [n, d] -> float64 [n, d]."""

    def quantized(self, heads: Heads, qkv: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        """qkv [n, together * dim], which may be overwritten -> integers of any dtype [n, together, dim] and scales
        [n, together]: queries and keys normed and turned by their positions, then each head quantised."""

    def attend(self, heads: Heads, query: Tensor, scales: Tensor, cached: CachedLayer) -> Tensor:
        """The last n of the cached positions look back: query, integers [n, heads, dim] and their scales [n, heads],
        both as views of what `quantized` gave -> [n, heads * dim]."""

    def gated(self, y: Tensor) -> Tensor:
        """gate beside up [n, 2 * width] -> silu(gate) * up [n, width]."""

    def gelu(self, y: Tensor) -> Tensor:
        """[n, width] -> the same shape."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """canonical(x + y), float32 like x."""

    def canonical(self, y: Tensor) -> tuple[Tensor, bool]:
        """canonical(y), float32, and whether all of it is finite."""

    def tap(self, hidden: Tensor, places: Sequence[int]) -> npt.NDArray[np.uint8]:
        """hidden [n, width], places [t] -> uint8 [n, 8 + 2 t]: of each row the scale, little-endian float64, and
        the integers at those places, little-endian int16."""


class TorchSteps:
    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        return norm(x.double())

    def quantized(self, heads: Heads, qkv: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        together = qkv.view(len(qkv), heads.together, heads.dim)
        if angles is not None:
            turning = together[:, : heads.heads + heads.kv_heads]
            if heads.query_norm is not None and heads.key_norm is not None:
                query, key = turning[:, : heads.heads], turning[:, heads.heads :]
                turning = torch.cat([heads.query_norm(query), heads.key_norm(key)], dim=1)
            together = torch.cat([rotate(turning, *angles), together[:, heads.heads + heads.kv_heads :]], dim=1)
        integers, scales = quantize(together)
        return integers, scales.squeeze(-1)

    def attend(self, heads: Heads, query: Tensor, scales: Tensor, cached: CachedLayer) -> Tensor:
        return attend(query, scales * (heads.scaling * LOG2_E), cached, heads.window)

    def gated(self, y: Tensor) -> Tensor:
        gate, up = y.chunk(2, dim=1)
        return silu(gate).mul_(up)

    def gelu(self, y: Tensor) -> Tensor:
        return gelu_tanh(y)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return canonical(x.double() + y)

    def canonical(self, y: Tensor) -> tuple[Tensor, bool]:
        out = canonical(y)
        return out, bool(torch.isfinite(out).all())

    def tap(self, hidden: Tensor, places: Sequence[int]) -> npt.NDArray[np.uint8]:
        scale = quantization_scale(hidden)
        integers = (hidden[:, torch.tensor(places).to(hidden.device)] / scale).round_().to(torch.int16)
        parts = [scale.cpu().numpy().astype("<f8").view(np.uint8), integers.cpu().numpy().astype("<i2").view(np.uint8)]
        return np.concatenate(parts, axis=1)


class NativeSteps:
    """By the C library, for heads of up to MOST_DIM."""

    def __init__(self, library: StepsLibrary) -> None:
        self._c = library

    @property
    def library(self) -> StepsLibrary:
        return self._c

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return norm(x)
        x = x.contiguous()
        n, d = x.shape
        y = torch.empty((n, d), dtype=torch.float64)
        self._c.norm(x.data_ptr(), n, d, norm.weight.data_ptr(), _address(norm.bias), norm.eps, y.data_ptr())
        return y

    def quantized(self, heads: Heads, qkv: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        qkv = qkv.contiguous()
        n = len(qkv)
        q = torch.empty((n, heads.together, heads.dim), dtype=torch.int16)
        scales = torch.empty((n, heads.together), dtype=torch.float64)
        cos, sin = (None, None) if angles is None else (angles[0].contiguous(), angles[1].contiguous())
        query_norm = None if heads.query_norm is None else heads.query_norm.weight
        key_norm = None if heads.key_norm is None else heads.key_norm.weight
        self._c.heads(
            qkv.data_ptr(),
            n,
            heads.heads,
            heads.kv_heads,
            heads.dim,
            _address(query_norm),
            _address(key_norm),
            0.0 if heads.query_norm is None else heads.query_norm.eps,
            _address(cos),
            _address(sin),
            q.data_ptr(),
            scales.data_ptr(),
        )
        return q, scales

    def attend(self, heads: Heads, query: Tensor, scales: Tensor, cached: CachedLayer) -> Tensor:
        n, positions = len(query), cached.keys.shape[1]
        out = torch.empty((n, heads.heads * heads.dim), dtype=torch.float64)
        memory = CCached(
            cached.keys.data_ptr(),
            cached.values.data_ptr(),
            cached.key_scales.data_ptr(),
            cached.value_scales.data_ptr(),
            heads.kv_heads,
            positions,
            heads.dim,
            cached.keys.stride(0),
            cached.key_scales.stride(0),
        )
        at = ctypes.byref(memory)
        work = torch.empty(self._c.attend_room(at), dtype=torch.uint8)
        self._c.attend(
            at,
            query.data_ptr(),
            query.stride(0),
            scales.data_ptr(),
            scales.stride(0),
            heads.scaling * LOG2_E,
            n,
            heads.heads,
            heads.window or 0,
            out.data_ptr(),
            work.data_ptr(),
        )
        return out

    def gated(self, y: Tensor) -> Tensor:
        y = y.contiguous()
        n, width = len(y), y.shape[1] // 2
        out = torch.empty((n, width), dtype=torch.float64)
        self._c.gated(y.data_ptr(), n, width, out.data_ptr())
        return out

    def gelu(self, y: Tensor) -> Tensor:
        y = y.contiguous()
        out = torch.empty_like(y)
        self._c.gelu(y.data_ptr(), y.numel(), out.data_ptr())
        return out

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        out = torch.empty_like(x)
        self._c.add(x.data_ptr(), y.data_ptr(), x.numel(), out.data_ptr())
        return out

    def canonical(self, y: Tensor) -> tuple[Tensor, bool]:
        y = y.contiguous()
        out = torch.empty(y.shape)
        return out, bool(self._c.canonical(y.data_ptr(), y.numel(), out.data_ptr()))

    def tap(self, hidden: Tensor, places: Sequence[int]) -> npt.NDArray[np.uint8]:
        hidden, where = hidden.contiguous(), torch.tensor(places)
        out = torch.empty((len(hidden), 8 + 2 * len(where)), dtype=torch.uint8)
        self._c.tap(hidden.data_ptr(), *hidden.shape, where.data_ptr(), len(where), out.data_ptr())
        return out.numpy()


def steps_for(kernel: Kernel, head_dim: int) -> Steps:
    """In C with the native products, where the library is there and takes the heads; else in torch."""
    usable = kernel is Kernel.NATIVE and head_dim <= MOST_DIM and sys.byteorder == "little"
    library = steps_library() if usable else None
    return TorchSteps() if library is None else NativeSteps(library)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

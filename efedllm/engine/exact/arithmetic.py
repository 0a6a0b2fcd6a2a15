"""The arithmetic of the exact profile beside the integer products. docs/exact.md is its specification.

Two kinds of step only:
- order-free ones (maximum; sums of integers that float64 holds exactly), which no blocking or threading can change;
- element-wise IEEE 754 operations that are correctly rounded by definition (+ - * / sqrt, rounding to an integer,
  conversion), each its own torch operator that writes its result before the next one reads it. No compiler sees a
  multiplication next to an addition, so none can fuse them. Never run this through torch.compile. Divisors are
  tensors of the same device: on a GPU torch multiplies by the reciprocal of a divisor that the CPU holds.

Nothing here may use torch's exp, pow, sqrt, rsqrt, softmax, silu, mean, norm or a sum of fractions: their bits differ
between instruction sets.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from efedllm.engine.exact.products import Q_MAX

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
"""log2(e), the nearest float64."""

EXP2_COEFFICIENTS = tuple(
    float.fromhex(text)
    for text in (
        "0x1.0p+0",
        "0x1.62e430p-1",
        "0x1.ebfbe0p-3",
        "0x1.c6b08ep-5",
        "0x1.3b2ab6p-7",
        "0x1.5d87fep-10",
        "0x1.430912p-13",
    )
)
"""ln(2)^k / k! for k = 0..6, the nearest float32: the Taylor polynomial of 2^f, 1.3e-7 from it for |f| <= 1/2."""

GELU_CUBE = float.fromhex("0x1.6e4e26d4801f7p-5")
"""0.044715, the nearest float64."""

GELU_SLOPE = float.fromhex("0x1.9884533d43651p+0")
"""2 * sqrt(2 / pi), the nearest float64."""

_LOWEST_EXPONENT = -120.0
_TINY = 2.0**-400
_SMALLEST_NORMAL = 2.0**-126


def constants() -> bytes:
    """The constants above in canonical bytes, for hashing: little-endian float64, then float32."""
    return struct.pack(f"<d{len(EXP2_COEFFICIENTS)}f", LOG2_E, *EXP2_COEFFICIENTS)


def gelu_constants() -> bytes:
    """Those of `gelu_tanh`, which only some models use: little-endian float64."""
    return struct.pack("<dd", GELU_CUBE, GELU_SLOPE)


def canonical(x: Tensor) -> Tensor:
    """float32 of float64 or float32: nearest even, then -0 and subnormal numbers become +0."""
    x = x.float()
    # Not >= with the branches swapped: NaN has to stay NaN, so that it is found.
    return torch.where(x.abs() < _SMALLEST_NORMAL, 0.0, x)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64 by its bit pattern; exponent int64 in -1022..1023."""
    return ((exponent + 1023) << 52).view(torch.float64)


def exp2(z: Tensor) -> Tensor:
    """2^z, float32 -> float32, for z <= 0; below -120 it is 2^-120. Overwrites z."""
    z.clamp_(min=_LOWEST_EXPONENT)
    whole = z.round()
    fraction = z.sub_(whole)
    value = fraction * EXP2_COEFFICIENTS[-1]
    for coefficient in EXP2_COEFFICIENTS[-2:0:-1]:
        value.add_(coefficient).mul_(fraction)
    value.add_(EXP2_COEFFICIENTS[0])
    # (n + 127) * 2^23 is the bit pattern of 2^n, and a number that float32 holds: cheaper than shifting integers.
    bits = whole.add_(127.0).mul_(2.0**23).to(torch.int32)
    return value.mul_(bits.view(torch.float32))


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x), float64 -> float64, the fraction in float32."""
    return x * _logistic(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x / (1 + e^-2t), t = sqrt(2 / pi) * (x + 0.044715 x^3): GELU by tanh, float64 -> float64."""
    cube = (x * x).mul_(x)
    return x * _logistic(cube.mul_(GELU_CUBE).add_(x).mul_(GELU_SLOPE))


def _logistic(z: Tensor) -> Tensor:
    """1 / (1 + e^-z), float64 -> float64, in float32."""
    small = exp2((z.abs() * -LOG2_E).float())
    numerator = torch.where(z >= 0, 1.0, small)
    return (numerator / (small + 1.0)).double()


def quantization_scale(x: Tensor) -> Tensor:
    """float64 [..., d] -> the scale of `quantize`, float64 [..., 1]."""
    return _divided(x.abs().amax(-1, keepdim=True), Q_MAX).clamp_(min=_TINY)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [..., d] -> integers q float64 [..., d], |q| <= Q_MAX, and scale float64 [..., 1]: x ~ q * scale."""
    scale = quantization_scale(x)
    return (x / scale).round_(), scale


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, float64 [..., d] -> float64 [..., d].

    x is rounded to multiples of a power of two of its own row, so many that the integer squares add up exactly.
    """
    dim = x.shape[-1]
    bits = (53 - (dim - 1).bit_length()) // 2
    exponent = _exponent(x)
    whole = (x * power_of_two(bits - 1 - exponent)).round_()
    squares = whole.mul_(whole).sum(-1, keepdim=True)
    step = power_of_two(exponent + (1 - bits))
    mean = _divided(squares.mul_(step).mul_(step), dim)
    return (x / _sqrt(mean.add_(eps))).mul_(weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, float64 [..., d] -> float64 [..., d].

    The mean is that of x rounded to multiples of a power of two, of which d add up exactly.
    """
    dim = x.shape[-1]
    bits = 53 - (dim - 1).bit_length()
    exponent = _exponent(x)
    total = (x * power_of_two(bits - 1 - exponent)).round_().sum(-1, keepdim=True)
    mean = _divided(total.mul_(power_of_two(exponent + (1 - bits))), dim)
    return rms_norm(x - mean, weight, eps).add_(bias)


def _divided(x: Tensor, number: int) -> Tensor:
    """x / number, correctly rounded on every device. Overwrites x."""
    return x.div_(torch.full((), number, dtype=x.dtype, device=x.device))


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded, float64. On the CPU by numpy, whose square root is the processor's: torch's comes from MKL,
    which rounds 1 in 150 the wrong way. CUDA's is the instruction of IEEE 754."""
    if x.device.type != "cpu":
        return x.sqrt()
    return torch.from_numpy(np.sqrt(x.numpy()))


def _exponent(x: Tensor) -> Tensor:
    """int64 [..., 1]: e with 2^e <= max|x_i| < 2^(e + 1), read from the bit pattern; at least that of 2^-400."""
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=_TINY)
    return (largest.view(torch.int64) >> 52) - 1023

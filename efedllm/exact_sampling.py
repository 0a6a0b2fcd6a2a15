"""Choosing the next token of an exact model: the same token on every machine. docs/exact.md is its specification.

Only element-wise IEEE 754 steps (numpy rounds each by itself), comparisons, and sums of integers. A verifier checks a
token by computing it: there is no tolerance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efedllm.commitments.hashing import as_uint, keccak
from efedllm.errors import ProtocolError
from efedllm.sampling import PPM, SamplingSpec

LOG2_E = np.float64(float.fromhex("0x1.71547652b82fep+0"))
EXP2_COEFFICIENTS = tuple(
    np.float32(float.fromhex(text))
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
"""The constants of `engine.exact.arithmetic`, which needs torch; a test compares them."""

WEIGHT_BITS = 30
"""The likeliest token has the weight 2^30: the weights of 2^31 tokens add up below 2^63."""

_LOWEST_EXPONENT = np.float32(-120.0)
_DRAW_BITS = 64

Logits = npt.NDArray[np.float32]
Weights = npt.NDArray[np.int64]


def exp2(z: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """2^z element by element for z <= 0; below -120 it is 2^-120."""
    z = np.maximum(z, _LOWEST_EXPONENT)
    whole = np.rint(z)
    fraction = z - whole
    value = fraction * EXP2_COEFFICIENTS[-1]
    for coefficient in EXP2_COEFFICIENTS[-2:0:-1]:
        value = (value + coefficient) * fraction
    value = value + EXP2_COEFFICIENTS[0]
    power = ((whole.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.asarray(value * power, dtype=np.float32)


def token_weights(logits: Logits, temperature_milli: int) -> Weights:
    """Integers in proportion to the probabilities at the temperature; the highest logit has 2^30, the unlikely 0."""
    distance = logits.astype(np.float64) - np.float64(logits.max())
    z = distance * np.float64(1000.0) / np.float64(temperature_milli) * LOG2_E
    # Beyond the range of float32 the weight is 0 long since.
    bounded: Logits = np.maximum(z, np.float64(_LOWEST_EXPONENT)).astype(np.float32)
    return np.rint(exp2(bounded).astype(np.float64) * np.float64(1 << WEIGHT_BITS)).astype(np.int64)


def draw(seed: bytes, position: int) -> int:
    """The draw in [0, 2^64) for the token at absolute `position`: first 8 bytes of K(seed | u32 position)."""
    return int.from_bytes(keccak(seed + as_uint(position, 32, "position").to_bytes(4, "big"))[:8], "big")


def sample_exact(logits: Logits, spec: SamplingSpec, position: int) -> int:
    """The token at absolute `position` (the prompt's length for the first) given canonical float32 logits [V].

    Raises ProtocolError "nonfinite" or "bad-shape".
    """
    if logits.ndim != 1 or logits.size == 0 or logits.dtype != np.float32:
        raise ProtocolError("bad-shape", "Logits must be one float32 row over the vocabulary.")
    if not np.isfinite(logits).all():
        raise ProtocolError("nonfinite", "The logits hold NaN or infinity.")
    if spec.greedy:
        return int(np.argmax(logits))
    weights = token_weights(logits, spec.temperature_milli)
    ids = _kept(logits, weights, spec)
    sums = np.cumsum(weights[ids])
    target = (draw(spec.seed, position) * int(sums[-1])) >> _DRAW_BITS
    return int(ids[np.searchsorted(sums, target, side="right")])


def _kept(logits: Logits, weights: Weights, spec: SamplingSpec) -> npt.NDArray[np.intp]:
    """Ids that top-k and top-p leave, ascending."""
    top_k = spec.top_k if 0 < spec.top_k < logits.size else logits.size
    if top_k == logits.size and spec.top_p_ppm == PPM:
        return np.arange(logits.size)
    # Stable: equal logits stand in the order of their ids.
    order = np.argsort(-logits, kind="stable")[:top_k]
    if spec.top_p_ppm < PPM:
        sums = np.cumsum(weights[order])
        # ahead * 10^6 < ppm * total, without leaving int64.
        limit = -(-spec.top_p_ppm * int(sums[-1]) // PPM)
        order = order[(sums - weights[order]) < limit]
    return np.sort(order)

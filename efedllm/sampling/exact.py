"""Choosing the next token of an exact model: the same token on every machine. docs/exact.md is its specification.

Only element-wise IEEE 754 steps (numpy rounds each by itself), comparisons, and sums of integers. A verifier checks a
token by computing it: there is no tolerance. `kernels/sampling.h` is the same in C, used where it is installed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efedllm.errors import ProtocolError
from efedllm.kernels.steps import StepsLibrary, steps_library
from efedllm.sampling.float import HEAD, PPM, SamplingSpec, draw_words, groups

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
    """Integers in proportion to the probabilities at the temperature, for one row or each of several [..., V]: the
    highest logit of a row has 2^30, the unlikely 0.
    """
    distance = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True).astype(np.float64)
    z = distance * np.float64(1000.0) / np.float64(temperature_milli) * LOG2_E
    # Beyond the range of float32 the weight is 0 long since.
    bounded: Logits = np.maximum(z, np.float64(_LOWEST_EXPONENT)).astype(np.float32)
    return np.rint(exp2(bounded).astype(np.float64) * np.float64(1 << WEIGHT_BITS)).astype(np.int64)


def sample_exact(logits: Logits, spec: SamplingSpec, position: int) -> int:
    """The token at absolute `position` (the prompt's length for the first) given canonical float32 logits [V].

    Raises ProtocolError "nonfinite" or "bad-shape".
    """
    _check(logits, 1)
    return int(sample_exact_rows(logits[None], spec, position)[0])


def sample_exact_rows(logits: Logits, spec: SamplingSpec, first: int) -> npt.NDArray[np.intp]:
    """`sample_exact` of every row of canonical float32 logits [n, V] at absolute positions first, first + 1, ...: [n].

    The steps are element-wise or of integers, so that rows computed together give the same numbers as alone. Raises
    ProtocolError "nonfinite" or "bad-shape".
    """
    _check(logits, 2)
    if spec.greedy:
        return np.asarray(np.argmax(logits, axis=1), dtype=np.intp)
    if not len(logits):
        return np.zeros(0, dtype=np.intp)
    library = steps_library()
    return sample_in_numpy(logits, spec, first) if library is None else sample_in_c(library, logits, spec, first)


def sample_in_c(library: StepsLibrary, logits: Logits, spec: SamplingSpec, first: int) -> npt.NDArray[np.intp]:
    """`sample_exact_rows` by the native library, of one or more finite rows and a temperature above 0."""
    rows = np.ascontiguousarray(logits)
    count, vocab = rows.shape
    given = np.array(draw_words(spec.seed, first, count), dtype=np.uint64)
    out = np.empty(count, dtype=np.int64)
    work = np.empty(library.sample_room(vocab), dtype=np.uint8)
    library.sample(
        rows.ctypes.data,
        count,
        vocab,
        spec.temperature_milli,
        spec.top_k,
        spec.top_p_ppm,
        given.ctypes.data,
        out.ctypes.data,
        work.ctypes.data,
    )
    return out.astype(np.intp, copy=False)


def sample_in_numpy(logits: Logits, spec: SamplingSpec, first: int) -> npt.NDArray[np.intp]:
    """`sample_exact_rows` where there is no native library, of finite logits and a temperature above 0."""
    given = draw_words(spec.seed, first, len(logits))
    if 0 < spec.top_k < logits.shape[1]:
        return np.array([_sampled(row, spec, one) for row, one in zip(logits, given, strict=True)], dtype=np.intp)
    out = np.zeros(len(logits), dtype=np.intp)
    for group in groups(len(logits), logits.shape[1]):
        rows, some = logits[group], given[group]
        weights = token_weights(rows, spec.temperature_milli)
        if spec.top_p_ppm < PPM:
            out[group] = [_drawn(row, w, spec, one) for row, w, one in zip(rows, weights, some, strict=True)]
            continue
        sums = np.cumsum(weights, axis=1)
        targets = [_target(one, int(total)) for one, total in zip(some, sums[:, -1], strict=True)]
        out[group] = np.count_nonzero(sums <= np.array(targets)[:, None], axis=1)
    return out


def _sampled(logits: Logits, spec: SamplingSpec, given: int) -> int:
    if 0 < spec.top_k < logits.size:
        # All that tie with the last one that top-k keeps, so that the lower ids can be taken of them. They hold the
        # highest, which sets the scale of the weights: what is left is sampled like a row of its own.
        lowest = np.partition(logits, logits.size - spec.top_k)[logits.size - spec.top_k]
        ids = np.flatnonzero(logits >= lowest)
        if ids.size < logits.size:
            return int(ids[_sampled(logits[ids], spec, given)])
    return _drawn(logits, token_weights(logits, spec.temperature_milli), spec, given)


def _check(logits: Logits, ndim: int) -> None:
    if logits.ndim != ndim or logits.shape[-1] == 0 or logits.dtype != np.float32:
        raise ProtocolError("bad-shape", f"Logits must be float32 of {ndim} dimensions, the last over the vocabulary.")
    if not np.isfinite(logits).all():
        raise ProtocolError("nonfinite", "The logits hold NaN or infinity.")


def _drawn(logits: Logits, weights: Weights, spec: SamplingSpec, given: int) -> int:
    ids = _kept(logits, weights, spec)
    sums = np.cumsum(weights[ids])
    return int(ids[np.searchsorted(sums, _target(given, int(sums[-1])), side="right")])


def _target(given: int, total: int) -> int:
    return (given * total) >> _DRAW_BITS


def _kept(logits: Logits, weights: Weights, spec: SamplingSpec) -> npt.NDArray[np.intp]:
    """Ids that top-k and top-p leave, ascending."""
    top_k = spec.top_k if 0 < spec.top_k < logits.size else logits.size
    if spec.top_p_ppm == PPM:
        return np.arange(logits.size) if top_k == logits.size else np.sort(_ordered(logits)[:top_k])
    if top_k == logits.size:
        # ahead * 10^6 < ppm * total, without leaving int64.
        limit = -(-spec.top_p_ppm * int(weights.sum()) // PPM)
        order = _leading(logits, weights, limit)
    else:
        order = _ordered(logits)[:top_k]
        limit = -(-spec.top_p_ppm * int(weights[order].sum()) // PPM)
    ahead = np.cumsum(weights[order]) - weights[order]
    return np.sort(order[ahead < limit])


def _ordered(logits: Logits) -> npt.NDArray[np.intp]:
    """Ids in order of falling logits. Stable: equal logits stand in the order of their ids."""
    return np.argsort(-logits, kind="stable")


def _leading(logits: Logits, weights: Weights, limit: int) -> npt.NDArray[np.intp]:
    """The start of `_ordered` whose weights reach `limit`, or more: whatever follows has as much ahead of it."""
    if logits.size > HEAD:
        ids = np.flatnonzero(logits >= np.partition(logits, logits.size - HEAD)[logits.size - HEAD])
        if int(weights[ids].sum()) >= limit:
            return ids[_ordered(logits[ids])]
    return _ordered(logits)

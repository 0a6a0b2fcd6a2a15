"""How far a committed hop output is from what the published weights give. numpy only, no I/O.

An exact model has no tolerance: the committed bytes are right or wrong (`compare_exact`). The rest is about float
models.

All arithmetic is float64 on the decoded canonical bytes. With y the committed output, y' our own recomputation and
x the committed input of one position (for the first hop the embedding of its token id):

    stat = ||y - y'|| / (TAU * ||y' - x|| + ROUNDING * ||y'||)

The first term scales with what the hop adds to the residual stream, so that skipped work is not hidden behind a large
residual; the second is what float32 rounding of a large residual alone may cost. A hop fails when the maximum over its
positions exceeds FAIL_AT, and is slashable above SEVERE_AT. A model's manifest may bring its own measured limits
(`efedllm model calibrate`); else its hops are measured by ten times TAU. TAU is for float32 compute of the bundled
model: 3 times the largest honest spread seen (1.0e-5, at contexts of 1000 positions; 4 times that of short texts), and
3.3 times below noise of 1e-4 of the update, the weakest attack that it is to find (`efedllm bench attacks`).

On a bf16 wire both sides round once more. The numerator is then the smallest change of y' that would round to the
committed bits (zero inside the rounding interval), and in addition the share of elements whose bits differ from the
rounded y' is bounded per chunk of positions: honest spread only moves elements that lie next to a rounding boundary.

On rows made for it no two machines agree. Before a hop is accused, `conditioning.py` measures how far our own
recomputation strays from itself, and the denominator is at least SPREAD_MARGIN times that. On rows that are not made
for it, tau is larger: it is as many times the largest honest deviation.

Nodes that declare to compute in bfloat16 are a class of their own, see HALF_LIMITS and `grade_half`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.errors import ProtocolError
from efedllm.models.tolerance import LEAST_ROUNDING, LEAST_TAU, Tolerance

TAU = LEAST_TAU
ROUNDING = LEAST_ROUNDING
FAIL_AT = 1.0
SEVERE_AT = 10.0

SPREAD_MARGIN = 8.0
"""The limit of a row is at least this many times what our own recomputation of it strays by: the margin of tau."""

# Of nodes that declare bfloat16, see `grade_half`.
HALF_LONE_FAIL_AT = 5.0
HALF_MOST_SEVERE_AT = 5.0
HALF_MOST = 0.75  # the position that so many others are no worse than

CHUNK = 32
MISMATCH_FAIL = 0.02
MISMATCH_SEVERE = 0.10
# A share of a small chunk is noisy: fewer differing elements than this never count.
MISMATCH_FLOOR = 8

# A logit row recomputed from the same hidden bytes differs by float32 summation order only.
LOGIT_TOLERANCE = 2e-5

FloatArray = NDArray[np.floating]


class Outcome(IntEnum):
    """Ordered by gravity: the outcome of a hop is the maximum over its checks."""

    PASS = 0
    FAIL = 1
    SEVERE = 2


@dataclass(frozen=True)
class DeviationLimits:
    """What the statistic is measured by; see the module. Without `slashable` nothing is worse than FAIL.

    `logits`: how far a logit may be off, relative to the largest. `half`: rows are those of a node that declares to
    compute in bfloat16: graded by `grade_half`, no bits of a bf16 wire compared, wrong tokens no worse than FAIL."""

    tau: float = TAU
    rounding: float = ROUNDING
    slashable: bool = True
    logits: float = LOGIT_TOLERANCE
    half: bool = False

    @classmethod
    def of(cls, tolerance: Tolerance | None) -> DeviationLimits:
        """A model's own limits, or the ones for models that were not calibrated."""
        if tolerance is None:
            return UNCALIBRATED
        return cls(tolerance.tau, tolerance.rounding, tolerance.slashable)

    def capped(self, outcome: Outcome) -> Outcome:
        """`outcome`, as far as these limits carry it."""
        return outcome if self.slashable else min(outcome, Outcome.FAIL)

    def capped_token(self, outcome: Outcome) -> Outcome:
        """`outcome` of a token that was not sampled from our logits, as far as these limits carry it."""
        return min(outcome, Outcome.FAIL) if self.half else self.capped(outcome)


MEASURED = DeviationLimits()
"""As measured on the bundled model."""

UNCALIBRATED = DeviationLimits(tau=10 * TAU)
"""For models that bring no limits. Some stray further than the bundled one: cut by plain SVD it came to 1.2 times TAU
after a thousand decoded positions, and nobody honest may fail."""

HALF_LIMITS = DeviationLimits(tau=7e-2, rounding=4 * 2.0**-8, logits=5e-2, half=True)
"""For nodes that declare to compute in bfloat16, where honest rows of texts come to 0.4 of the limit.

The class tells layers left out, low ranks and four-bit weights, not eight-bit ones. Only what no precision explains is
severe: layers not computed at all, another model, rows of another job. Wrong tokens never are: a logit is a small
difference of many products, so that no share of the largest logit bounds what bfloat16 does to it, and honest tokens
are drawn from those logits."""


@dataclass(frozen=True)
class HopStatistic:
    """`worst` = maximum of the statistic, at `position`; `mismatch` = worst share of differing bits (0 on float32).

    Of an exact model: number of differing values, first position with one, share of them."""

    worst: float
    position: int
    mismatch: float
    outcome: Outcome


class BackendError(Exception):
    """Our own recomputation is unusable (shape or non-finite): the auditor must abstain, the node is not to blame."""


def compare(
    y: FloatArray,
    y_ref: FloatArray,
    x: FloatArray,
    dtype: WireDtype,
    limits: DeviationLimits = MEASURED,
    spread: NDArray[np.float64] | None = None,
) -> HopStatistic:
    """Compare a committed hop output with our recomputation.

    y, y_ref, x: [n, hidden]; y decoded from the wire, y_ref float32 before any rounding, x the hop's input in hidden
    space; spread: how far y_ref strays from itself, float64 [n], where that was measured. Raises BackendError when
    y_ref is not a finite array of y's shape.
    """
    if y_ref.shape != y.shape or x.shape != y.shape or y.ndim != 2 or not len(y):
        raise BackendError(f"recomputed {y_ref.shape} from input {x.shape}, committed {y.shape}")
    if not np.isfinite(y_ref).all() or not np.isfinite(x).all():
        raise BackendError("recomputation is not finite")
    if not np.isfinite(y).all():
        return HopStatistic(float("inf"), int(np.argmin(np.isfinite(y).all(axis=1))), 1.0, Outcome.SEVERE)
    stats = per_position(y, y_ref, x, dtype, limits, spread)
    position = int(np.argmax(stats))
    worst = float(stats[position])
    mismatch, mismatch_outcome = 0.0, Outcome.PASS
    if dtype is WireDtype.BF16 and not limits.half:
        mismatch, mismatch_outcome = chunk_mismatch(y, y_ref, limits, _strays(y_ref, x, limits, spread))
    outcome = grade_half(stats) if limits.half else grade(worst)
    return HopStatistic(worst, position, mismatch, limits.capped(max(outcome, mismatch_outcome)))


def compare_exact(committed: bytes, ours: FloatArray) -> HopStatistic:
    """Compare the committed canonical F32 bytes of a hop's output with our recomputation, bit for bit.

    ours: float32 [n, hidden]. `worst` is the number of values that differ and `position` the first one with such a
    value (0 when there is none); any difference is SEVERE. Raises BackendError when ours cannot be written down.
    """
    if ours.ndim != 2 or not len(ours) or len(committed) != 4 * ours.size:
        raise BackendError(f"recomputed {ours.shape}, committed {len(committed)} bytes")
    try:
        expected = encode(ours, WireDtype.F32)
    except ProtocolError as error:
        raise BackendError(f"recomputation is not canonical: {error.message}") from error
    if committed == expected:
        return HopStatistic(0.0, 0, 0.0, Outcome.PASS)
    differs = np.frombuffer(committed, "<u4").reshape(ours.shape) != np.frombuffer(expected, "<u4").reshape(ours.shape)
    position = int(np.argmax(differs.any(axis=1)))
    return HopStatistic(float(differs.sum()), position, float(differs.mean()), Outcome.SEVERE)


def per_position(
    y: FloatArray,
    y_ref: FloatArray,
    x: FloatArray,
    dtype: WireDtype,
    limits: DeviationLimits = MEASURED,
    spread: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The statistic of every position, float64 [n]; arguments as of `compare`. 0/0 counts as 0, otherwise a zero
    denominator as infinity."""
    ours = y_ref.astype(np.float64)
    committed = y.astype(np.float64)
    difference = np.abs(committed - ours)
    if dtype is WireDtype.BF16:
        difference = np.maximum(difference - bf16_half_step(committed), 0.0)
    numerator = np.linalg.norm(difference, axis=1)
    denominator = _allowed(ours, x, limits)
    if spread is not None:
        denominator = np.maximum(denominator, SPREAD_MARGIN * spread)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator / denominator
    return np.where(numerator == 0.0, 0.0, ratio)


def _allowed(y_ref: FloatArray, x: FloatArray, limits: DeviationLimits) -> NDArray[np.float64]:
    """Length of the deviation of each row at which the statistic is 1, by `limits` alone, [n]."""
    ours = y_ref.astype(np.float64)
    update = np.linalg.norm(ours - x.astype(np.float64), axis=1)
    return np.asarray(limits.tau * update + limits.rounding * np.linalg.norm(ours, axis=1))


def _strays(
    y_ref: FloatArray, x: FloatArray, limits: DeviationLimits, spread: NDArray[np.float64] | None
) -> NDArray[np.bool_] | None:
    """Rows whose own spread asks for more than `limits` allow, [n]; None where it was not measured."""
    return None if spread is None else np.asarray(SPREAD_MARGIN * spread > _allowed(y_ref, x, limits))


def grade(worst: float) -> Outcome:
    """PASS up to FAIL_AT, SEVERE above SEVERE_AT; a NaN is as bad as it gets."""
    if not worst <= SEVERE_AT:
        return Outcome.SEVERE
    return Outcome.FAIL if worst > FAIL_AT else Outcome.PASS


def grade_half(stats: NDArray[np.float64]) -> Outcome:
    """Outcome of the statistics [n] of the positions of a hop whose node declares to compute in bfloat16.

    Eight bits decide a near tie now and then the other way, in attention or where large terms cancel: honest rows come
    to 2.6 at single positions of prompts searched for that, and to 3.5 after rows searched for it. The upper quartile
    of a job's positions came to 0.8 and 1.6 where that was searched for. So one position fails a hop only above
    HALF_LONE_FAIL_AT, a quarter of them above FAIL_AT; it is severe where the worst is above SEVERE_AT and a quarter
    above HALF_MOST_SEVERE_AT, to neither of which weights of four bits come.
    """
    worst = float(stats.max())
    most = float(np.quantile(stats, HALF_MOST, method="lower"))
    if not worst <= SEVERE_AT and not most <= HALF_MOST_SEVERE_AT:
        return Outcome.SEVERE
    return Outcome.PASS if worst <= HALF_LONE_FAIL_AT and most <= FAIL_AT else Outcome.FAIL


def bf16_half_step(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the spacing of bfloat16 (8 significant bits, exponent down to -126) at each value."""
    _, exponent = np.frexp(values)  # |v| in [2^(exponent-1), 2^exponent)
    half: NDArray[np.float64] = np.ldexp(1.0, np.maximum(exponent - 1, -126) - 8)
    return half


def chunk_mismatch(
    y: FloatArray, y_ref: FloatArray, limits: DeviationLimits = MEASURED, strays: NDArray[np.bool_] | None = None
) -> tuple[float, Outcome]:
    """Share of elements of the rounded recomputation whose bf16 bits differ from the committed ones.

    Worst chunk of CHUNK positions (a shorter tail joins the chunk before it), and its outcome. The bounds grow with
    the limit beyond TAU, for which they were measured: twice the deviation moves twice as many elements over a rounding
    boundary. Nothing is counted of rows that are said to stray, bool [n].
    """
    slack = max(1.0, limits.tau / TAU)
    rounded = decode(encode(y_ref.astype(np.float32), WireDtype.BF16), WireDtype.BF16, y_ref.shape[1])
    differs = np.count_nonzero(rounded != y, axis=1)
    if strays is not None:
        differs = np.where(strays, 0, differs)
    starts = np.arange(0, max(len(differs) - CHUNK, 0) + 1, CHUNK)
    counts = np.add.reduceat(differs, starts)
    elements = np.diff(np.append(starts, len(differs))) * y.shape[1]
    shares = counts / elements
    outcome = Outcome.PASS
    if np.any((shares > slack * MISMATCH_FAIL) & (counts > MISMATCH_FLOOR)):
        outcome = Outcome.FAIL
    if np.any((shares > slack * MISMATCH_SEVERE) & (counts > MISMATCH_FLOOR)):
        outcome = Outcome.SEVERE
    return float(shares.max()), outcome


def logit_tolerances(logits: FloatArray, limits: DeviationLimits = MEASURED) -> NDArray[np.float64]:
    """How far each of the recomputed logit rows [n, vocab] may be off, in logit units, float64 [n]."""
    largest = np.maximum(logits.max(axis=1), -logits.min(axis=1)).astype(np.float64)
    return np.asarray(limits.logits * np.maximum(1.0, largest), dtype=np.float64)

"""Measures how far a committed hop output is from the output of the published weights. numpy only, no I/O.

An exact model has no tolerance: `compare_exact` compares bytes. Everything else in this module is for float models.

All arithmetic is float64 on the decoded canonical bytes. With y the committed output, y' our own recomputation and
x the committed input of one position (for the first hop the embedding of its token id):

    stat = ||y - y'|| / (TAU * ||y' - x|| + ROUNDING * ||y'||)

The first term scales with the update that the hop adds to the residual stream, so that a large residual cannot hide
skipped work. The second term allows for float32 rounding of a large residual. A hop fails when the maximum over its
positions exceeds FAIL_AT, and is slashable above SEVERE_AT. A model's manifest may state its own measured limits
(`efedllm model calibrate`); hops of other models are measured by ten times TAU. TAU is for float32 compute of the
bundled model. It is 3 times the largest deviation between honest machines (1.0e-5, at contexts of 1000 positions; 4
times that of short texts), and 3.3 times below noise of 1e-4 of the update, the weakest attack that it must detect
(`efedllm bench attacks`).

On a bf16 wire both sides round once more. The numerator is then the smallest change of y' that would round to the
committed bits (zero inside the rounding interval). In addition, the share of elements whose bits differ from the
rounded y' is bounded per chunk of positions: honest deviation only moves elements next to a rounding boundary.

Rows can be constructed on which honest machines disagree. Before a hop is accused, `conditioning.py` measures how much
our own recomputation varies, and the denominator becomes at least SPREAD_MARGIN times that variation. On ordinary rows
the limit by tau is larger than that, so the measurement changes nothing.

Nodes that declare bfloat16 compute are graded separately, see HALF_LIMITS and `grade_half`.
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
"""The limit of a row is at least this many times the variation of our own recomputation of it."""

# For nodes that declare bfloat16, see `grade_half`.
HALF_LONE_FAIL_AT = 5.0
HALF_MOST_SEVERE_AT = 5.0
HALF_MOST = 0.75  # quantile of the statistic over the positions of a hop

CHUNK = 32
MISMATCH_FAIL = 0.02
MISMATCH_SEVERE = 0.10
# The share in a small chunk is noisy: up to this many differing elements are ignored.
MISMATCH_FLOOR = 8

# A logit row recomputed from the same hidden bytes differs by float32 summation order only.
LOGIT_TOLERANCE = 2e-5

FloatArray = NDArray[np.floating]


class Outcome(IntEnum):
    """Ordered by severity: the outcome of a hop is the maximum over its checks."""

    PASS = 0
    FAIL = 1
    SEVERE = 2


@dataclass(frozen=True)
class DeviationLimits:
    """Limits of the statistic, see the module. Without `slashable` no outcome is worse than FAIL.

    logits: allowed deviation of a logit, relative to the largest. half: for a node that declares bfloat16 compute. Its
    rows are graded by `grade_half`, bits of a bf16 wire are not compared, and wrong tokens are at most FAIL.
    """

    tau: float = TAU
    rounding: float = ROUNDING
    slashable: bool = True
    logits: float = LOGIT_TOLERANCE
    half: bool = False

    @classmethod
    def of(cls, tolerance: Tolerance | None) -> DeviationLimits:
        """The limits in a model's manifest, or UNCALIBRATED when it states none."""
        if tolerance is None:
            return UNCALIBRATED
        return cls(tolerance.tau, tolerance.rounding, tolerance.slashable)

    def capped(self, outcome: Outcome) -> Outcome:
        """`outcome`, or FAIL when it is worse and these limits do not slash."""
        return outcome if self.slashable else min(outcome, Outcome.FAIL)

    def capped_token(self, outcome: Outcome) -> Outcome:
        """`capped` for a token that was not sampled from our logits: never worse than FAIL with `half`."""
        return min(outcome, Outcome.FAIL) if self.half else self.capped(outcome)


MEASURED = DeviationLimits()
"""Measured on the bundled model."""

UNCALIBRATED = DeviationLimits(tau=10 * TAU)
"""For models whose manifest states no limits. Honest machines can differ more than on the bundled model: with the model
truncated by plain SVD they differed by 1.2 times TAU after a thousand decoded positions. No honest node may fail."""

HALF_LIMITS = DeviationLimits(tau=7e-2, rounding=4 * 2.0**-8, logits=5e-2, half=True)
"""For nodes that declare bfloat16 compute. Honest rows of ordinary texts reach 0.4 of the limit.

These limits detect skipped layers, lower ranks and four-bit weights, but not eight-bit weights. An outcome is severe
only when precision cannot explain it: no layer computed, another model, rows of another job. Wrong tokens are never
severe. A logit is a small difference of many products, so no share of the largest logit bounds its bfloat16 error, and
honest tokens are sampled from such logits."""


@dataclass(frozen=True)
class HopStatistic:
    """Float model: `worst` is the maximum of the statistic, `position` where it is reached, and `mismatch` the largest
    share of differing bits in a chunk (0 on a float32 wire).

    Exact model: `worst` is the number of differing values, `position` the first with one, and `mismatch` their share.
    """

    worst: float
    position: int
    mismatch: float
    outcome: Outcome


class BackendError(Exception):
    """Our own recomputation is unusable, so the auditor must abstain: the node is not at fault."""


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
    space; spread: variation of y_ref by `own_spread`, float64 [n], None when not measured. Raises BackendError when
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
    value (0 when there is none). Any difference is SEVERE. Raises BackendError when ours has no canonical bytes.
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
    """Rows whose spread requires a wider limit than `limits`, bool [n]; None when the spread was not measured."""
    return None if spread is None else np.asarray(SPREAD_MARGIN * spread > _allowed(y_ref, x, limits))


def grade(worst: float) -> Outcome:
    """PASS up to FAIL_AT, SEVERE above SEVERE_AT and for NaN, else FAIL."""
    if not worst <= SEVERE_AT:
        return Outcome.SEVERE
    return Outcome.FAIL if worst > FAIL_AT else Outcome.PASS


def grade_half(stats: NDArray[np.float64]) -> Outcome:
    """Outcome of a hop whose node declares bfloat16 compute, from the statistic of each position, float64 [n].

    With eight significant bits a near tie in attention, or between large terms that cancel, may be decided differently.
    A single honest position reached 2.6 on prompts searched for this, and 3.5 on hidden rows searched for this. The
    upper quartile of a job's positions reached 0.8, and 1.6 in such a search. So a hop fails when one position is above
    HALF_LONE_FAIL_AT, or a quarter of them above FAIL_AT. It is severe when the worst position is above SEVERE_AT and a
    quarter of them above HALF_MOST_SEVERE_AT. Four-bit weights reach neither of the severe limits.
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
    limits.tau beyond TAU, for which they were measured: twice the deviation moves twice as many elements over a
    rounding boundary. strays: rows that are not counted, bool [n].
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
    """Allowed deviation of a logit in each recomputed row of `logits` [n, vocab], in logit units, float64 [n]."""
    largest = np.maximum(logits.max(axis=1), -logits.min(axis=1)).astype(np.float64)
    return np.asarray(limits.logits * np.maximum(1.0, largest), dtype=np.float64)

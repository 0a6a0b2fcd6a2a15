"""Choosing the next token from logits, reproducibly, and judging someone else's choice.

All arithmetic is float64 on CPU; the only randomness is a hash of the job's seed and the position, so a verifier that
holds the same logits gets the same token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from efedllm.commitments.hashing import as_h32, as_uint, keccak_each
from efedllm.errors import ProtocolError
from efedllm.kernels.steps import StepsLibrary, steps_library

if TYPE_CHECKING:
    from efedllm.commitments.messages import JobSpec

PPM = 1_000_000
HEAD = 256
"""Where top-p reaches its share within so many tokens, the others need not be put in order."""
# Float64 sums over a vocabulary differ by about 1e-13 between machines; far below any probability that matters.
_SLACK = 1e-9
# Logits worked on at once where many rows are given: temporaries stay in the processor's cache.
_GROUP = 1 << 16
Logits = npt.NDArray[Any]
Weights = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SamplingSpec:
    """How tokens are chosen. temperature_milli 0 is greedy; top_k 0 and top_p_ppm 1000000 switch those filters off."""

    temperature_milli: int
    top_k: int
    top_p_ppm: int
    seed: bytes

    def __post_init__(self) -> None:
        as_uint(self.temperature_milli, 32, "temperature_milli")
        as_uint(self.top_k, 32, "top_k")
        as_h32(self.seed, "seed")
        if as_uint(self.top_p_ppm, 32, "top_p_ppm") < 1 or self.top_p_ppm > PPM:
            raise ProtocolError("bad-message", "top_p must be above 0 and at most 1 (1000000 ppm).")

    @classmethod
    def from_job(cls, spec: JobSpec) -> Self:
        """The sampling part of a signed job."""
        return cls(spec.temperature_milli, spec.top_k, spec.top_p_ppm, spec.seed)

    @property
    def greedy(self) -> bool:
        """Whether the highest logit always wins."""
        return self.temperature_milli == 0


def uniform(seed: bytes, position: int) -> float:
    """The draw in [0, 1) for the token at absolute `position`: first 8 bytes of K(seed | u32 position) over 2**64."""
    return float(uniforms(seed, position, 1)[0])


def uniforms(seed: bytes, first: int, count: int) -> Weights:
    """`uniform` at `count` absolute positions from `first` on."""
    shares = [word / 2.0**64 for word in draw_words(seed, first, count)]
    # Rounds to 53 bits: the largest words would become 1.0.
    return np.minimum(np.array(shares, dtype=np.float64), 1.0 - 2.0**-53)


def draw_words(seed: bytes, first: int, count: int) -> list[int]:
    """The draws in [0, 2^64) for the tokens at `count` absolute positions from `first` on: the first 8 bytes of
    K(seed | u32 position), big-endian."""
    messages = [seed + as_uint(first + i, 32, "position").to_bytes(4, "big") for i in range(count)]
    return [int.from_bytes(digest[:8], "big") for digest in keccak_each(messages)]


def groups(rows: int, vocab: int) -> Iterator[slice]:
    """Slices that cover `rows` in order, each of at most 65536 logits or one row."""
    step = max(1, _GROUP // vocab)
    return (slice(start, start + step) for start in range(0, rows, step))


def _checked(logits: Logits, ndim: int = 1) -> Logits:
    if logits.ndim != ndim or logits.shape[-1] == 0:
        raise ProtocolError("bad-shape", f"Logits must have {ndim} dimensions, the last over the vocabulary.")
    if not np.isfinite(logits).all():
        raise ProtocolError("nonfinite", "The logits hold NaN or infinity.")
    return logits


def _scaled(logits: Logits, spec: SamplingSpec) -> Weights:
    """Logits [..., V] over temperature, shifted so that the highest of each row is 0."""
    values = logits.astype(np.float64) * (1000.0 / spec.temperature_milli)
    return np.asarray(values - values.max(axis=-1, keepdims=True), dtype=np.float64)


def _top_k(scaled: Weights, k: int) -> Mask:
    """The k highest, ties to the lower id."""
    n = scaled.size
    if k == 0 or k >= n:
        return np.ones(n, dtype=np.bool_)
    threshold = np.partition(scaled, n - k)[n - k]
    keep: Mask = scaled > threshold
    ties = np.flatnonzero(scaled == threshold)
    keep[ties[: k - int(keep.sum())]] = True
    return keep


def _top_p(scaled: Weights, weights: Weights, keep: Mask, top_p_ppm: int) -> Mask:
    """Of `keep`, the shortest run in order (weight descending, id ascending) whose share reaches top_p."""
    if top_p_ppm >= PPM:
        return keep
    ids = np.flatnonzero(keep)
    order = ids[np.argsort(-scaled[ids], kind="stable")]
    sums = np.cumsum(weights[order])
    # A token stays when what stands before it has not yet reached the share: the one that crosses it is included.
    ahead = np.concatenate(([0.0], sums[:-1]))
    chosen = np.zeros_like(keep)
    chosen[order[ahead < top_p_ppm / PPM * sums[-1]]] = True
    return chosen


def sample(logits: Logits, spec: SamplingSpec, position: int) -> int:
    """The token at absolute `position` (the prompt's length for the first) given float32 logits [V].

    Greedy: highest logit, lowest id on ties. Else softmax at the temperature, top-k, then top-p over the renormalised
    rest, then the first id, in ascending order, whose cumulative probability exceeds `uniform(seed, position)`.
    Raises ProtocolError "nonfinite" or "bad-shape".
    """
    _checked(logits)
    if spec.greedy:
        return int(np.argmax(logits))
    scaled = _scaled(logits, spec)
    weights: Weights = np.exp(scaled)
    keep = _top_p(scaled, weights, _top_k(scaled, spec.top_k), spec.top_p_ppm)
    ids = np.flatnonzero(keep)
    sums = np.cumsum(weights[ids])
    index = int(np.searchsorted(sums, uniform(spec.seed, position) * sums[-1], side="right"))
    return int(ids[min(index, ids.size - 1)])


def is_consistent(logits: Logits, spec: SamplingSpec, position: int, token: int, tolerance: float) -> bool:
    """Whether some logits within `tolerance` (absolute, per logit) of these make `sample` return `token`.

    Never False for such a token: an honest node whose logits are within the tolerance is never accused. Greedy and
    plain sampling are exact. With top-k or top-p a token near the cut may or may not have been kept; it then counts
    on whichever side widens the interval of draws that give `token`, so a few tokens right at a cut are accepted
    needlessly. Raises ProtocolError "nonfinite" or "bad-shape", ValueError for a negative tolerance.
    """
    _checked(logits)
    _check_tolerance(tolerance)
    if not 0 <= token < logits.size:
        return False
    if spec.greedy:
        # The winner may have lost, and the rival gained, one tolerance each.
        return float(logits[token]) >= float(logits.max()) - 2.0 * tolerance
    scaled = _scaled(logits, spec)
    shift = tolerance * 1000.0 / spec.temperature_milli
    sure, possible = _kept_under(scaled, spec, shift)
    if not possible[token]:
        return False
    return _in_reach(np.exp(scaled), sure, possible, token, shift, uniform(spec.seed, position))


def _check_tolerance(tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError("tolerance must be a finite number of at least 0")


def _in_reach(weights: Weights, sure: Mask, possible: Mask, token: int, shift: float, u: float) -> bool:
    """Whether the draw `u` can fall on `token`, an index into `weights`, if every scaled logit may move by `shift`."""
    # e**shift on one side and e**-shift on the other, divided by their larger factor so that nothing overflows.
    low = math.exp(-2.0 * shift)
    below = float(weights[:token][sure[:token]].sum()) * low
    from_token = float(weights[token:][possible[token:]].sum())
    upto_token = float(weights[: token + 1][possible[: token + 1]].sum())
    above = float(weights[token + 1 :][sure[token + 1 :]].sum()) * low
    lowest_start = below / (below + from_token) if below + from_token > 0.0 else 0.0
    highest_end = upto_token / (upto_token + above) if upto_token + above > 0.0 else 1.0
    return lowest_start <= u + _SLACK and u <= highest_end + _SLACK


def _kept_under(scaled: Weights, spec: SamplingSpec, shift: float) -> tuple[Mask, Mask]:
    """(kept by the filters under every perturbation of at most `shift`, kept under at least one); the second may be
    too wide.
    """
    n = scaled.size
    sure = np.ones(n, dtype=np.bool_)
    possible = np.ones(n, dtype=np.bool_)
    reach = _reach(shift, float(scaled.min()))
    ascending = np.sort(scaled)
    if 0 < spec.top_k < n:
        # May rank before j: at least x_j - reach, j itself not counted. Must rank before j: above x_j + reach.
        may = n - np.searchsorted(ascending, scaled - reach, side="left") - 1
        must = n - np.searchsorted(ascending, scaled + reach, side="right")
        sure &= may < spec.top_k
        possible &= must < spec.top_k
    if spec.top_p_ppm < PPM:
        share = spec.top_p_ppm / PPM
        weights: Weights = np.exp(scaled)
        low = math.exp(-2.0 * shift)
        sure_sum, possible_sum = _Tail(scaled, weights, sure), _Tail(scaled, weights, possible)
        # Most that can stand before j, against the least of the rest (j included), and the other way round.
        ahead_max = np.maximum(possible_sum.at_least(scaled - reach) - weights * possible, 0.0)
        rest_min = (np.maximum(sure_sum.total - sure_sum.at_least(scaled - reach), 0.0) + weights) * low
        ahead_min = sure_sum.above(scaled + reach) * low
        rest_max = np.maximum(possible_sum.total - possible_sum.above(scaled + reach), 0.0)
        sure &= ahead_max < (share - _SLACK) * (ahead_max + rest_min)
        possible &= ahead_min <= (share + _SLACK) * (ahead_min + rest_max)
    return sure, possible


def _reach(shift: float, lowest: float) -> float:
    """How far two scores may come towards each other, with room for rounding."""
    return 2.0 * shift + 1e-12 * (1.0 + abs(lowest))


class _Tail:
    """Sums of the weights of masked tokens at or above a score."""

    def __init__(self, scaled: Weights, weights: Weights, mask: Mask) -> None:
        order = np.argsort(scaled[mask], kind="stable")
        self._scores = scaled[mask][order]
        self._suffix = np.concatenate((np.cumsum(weights[mask][order][::-1])[::-1], [0.0]))
        self.total = float(self._suffix[0])

    def at_least(self, scores: Weights) -> Weights:
        out: Weights = self._suffix[np.searchsorted(self._scores, scores, side="left")]
        return out

    def above(self, scores: Weights) -> Weights:
        out: Weights = self._suffix[np.searchsorted(self._scores, scores, side="right")]
        return out


def are_consistent(
    logits: Logits, spec: SamplingSpec, first: int, tokens: Sequence[int], tolerances: Sequence[float]
) -> Mask:
    """`is_consistent` of every row of logits [n, V]: its token, its tolerance, absolute positions first, first + 1, ...

    The same sums in the same order, so that no verdict differs; but rows are scaled together, top-k needs no sort, and
    only tokens that top-k may keep are weighed. A token that these very logits give is consistent and not looked at
    any further. Raises what `is_consistent` raises.
    """
    _checked(logits, 2)
    for tolerance in tolerances:
        _check_tolerance(tolerance)
    n = logits.shape[1]
    if not len(logits) == len(tokens) == len(tolerances):
        raise ProtocolError("bad-shape", "There must be one token and one tolerance for every row of logits.")
    if spec.greedy:
        known = np.array([0 <= token < n for token in tokens], dtype=np.bool_)
        chosen = np.array([token if 0 <= token < n else 0 for token in tokens], dtype=np.intp)
        given = logits[np.arange(len(logits)), chosen].astype(np.float64)
        highest = logits.max(axis=1).astype(np.float64)
        return np.asarray(known & (given >= highest - 2.0 * np.asarray(tolerances)), dtype=np.bool_)
    out = np.zeros(len(logits), dtype=np.bool_)
    library = steps_library()
    if library is not None and logits.dtype == np.float32:
        draws, given = uniforms(spec.seed, first, len(logits)), np.asarray(tokens)
        for group in groups(len(logits), n):
            sampled = _likely(library, logits[group], spec, draws[group])
            out[group] = (sampled >= 0) & (sampled == given[group])
    rest = np.flatnonzero(~out)
    for group in groups(len(rest), n):
        rows = rest[group]
        scaled = _scaled(logits[rows], spec)
        cuts = _cuts(scaled, spec.top_k)
        for values, cut, low, row in zip(scaled, cuts, scaled.min(axis=1), rows.tolist(), strict=True):
            shift = tolerances[row] * 1000.0 / spec.temperature_milli
            reach = _reach(shift, float(low))
            out[row] = _judged(values, cut, spec, first + row, tokens[row], shift, reach)
    return out


def _likely(library: StepsLibrary, logits: Logits, spec: SamplingSpec, draws: Weights) -> npt.NDArray[np.int64]:
    """What `sample` gives for rows of float32 logits [n, V] and their draws [n]; -1 where that takes a longer sort."""
    count, vocab = logits.shape
    cut = 0 < spec.top_k < vocab
    top = spec.top_k if cut else min(vocab, HEAD)
    if not cut and spec.top_p_ppm >= PPM:
        sums = np.cumsum(np.exp(_scaled(logits, spec)), axis=1)
        return np.asarray(np.minimum(np.count_nonzero(sums <= draws[:, None] * sums[:, -1:], axis=1), vocab - 1))
    places = np.empty((count, top), dtype=np.int32)
    rows = np.ascontiguousarray(logits)
    work = np.empty(library.sample_room(vocab), dtype=np.uint8)
    library.highest(rows.ctypes.data, count, vocab, top, places.ctypes.data, work.ctypes.data)
    weights: Weights = np.exp(_scaled(np.take_along_axis(rows, places, axis=1), spec))
    settled = np.ones(count, dtype=np.bool_)
    if spec.top_p_ppm < PPM:
        total = weights.sum(axis=1) if cut or top == vocab else np.exp(_scaled(rows, spec)).sum(axis=1)
        order = np.argsort(-np.take_along_axis(rows, places, axis=1), axis=1, kind="stable")
        heavy = np.take_along_axis(weights, order, axis=1)
        kept = np.cumsum(heavy, axis=1) - heavy < (spec.top_p_ppm / PPM * total)[:, None]
        settled = ~kept[:, -1] if top < vocab and not cut else settled
        np.put_along_axis(weights, order, heavy * kept, axis=1)
    sums = np.cumsum(weights, axis=1)
    chosen = np.minimum(np.count_nonzero(sums <= draws[:, None] * sums[:, -1:], axis=1), top - 1)
    return np.where(settled, np.take_along_axis(places, chosen[:, None], axis=1)[:, 0], -1).astype(np.int64)


def _cuts(scaled: Weights, top_k: int) -> Weights | list[None]:
    """The highest score that top-k leaves out of each row of [n, V] and the lowest that it keeps: [n, 2]."""
    out = scaled.shape[1] - top_k - 1
    if top_k == 0 or out < 0:
        return [None] * len(scaled)
    # One pivot, which is faster than two: what is kept stands behind the highest that is not.
    parted = np.partition(scaled, out, axis=1)
    return np.stack((parted[:, out], parted[:, out + 1 :].min(axis=1)), axis=1)


def _judged(
    scaled: Weights, cut: Weights | None, spec: SamplingSpec, position: int, token: int, shift: float, reach: float
) -> bool:
    """`is_consistent` of one row that is scaled, `cut` as `_cuts` has it."""
    if not 0 <= token < scaled.size:
        return False
    ids, weights, sure, possible = _candidates(scaled, cut, spec, shift, reach)
    place = int(np.searchsorted(ids, token))
    if place == ids.size or ids[place] != token or not possible[place]:
        return False
    return _in_reach(weights, sure, possible, place, shift, uniform(spec.seed, position))


def _candidates(
    scaled: Weights, cut: Weights | None, spec: SamplingSpec, shift: float, reach: float
) -> tuple[npt.NDArray[np.intp], Weights, Mask, Mask]:
    """Ids that top-k may keep, ascending, with their weights and what `_kept_under` says of them, not of others."""
    ids = np.arange(scaled.size)
    sure = np.ones(scaled.size, dtype=np.bool_)
    if cut is not None:
        ids = np.flatnonzero(cut[1] <= scaled + reach)
        scaled = scaled[ids]
        sure = cut[0] < scaled - reach
    possible = np.ones(scaled.size, dtype=np.bool_)
    weights: Weights = np.exp(scaled)
    if spec.top_p_ppm < PPM:
        sure, possible = _top_p_under(scaled, weights, sure, spec.top_p_ppm / PPM, shift, reach)
    return ids, weights, sure, possible


def _top_p_under(
    scaled: Weights, weights: Weights, sure: Mask, share: float, shift: float, reach: float
) -> tuple[Mask, Mask]:
    """The top-p half of `_kept_under` for tokens that top-k may all keep, and keeps whatever happens where `sure`.

    One sort: the sure ones are the highest, so that sums over them are those over all, up to where they begin. Equal
    scores have equal weights, so that their order changes no sum.
    """
    order = np.argsort(scaled)
    scores, heavy = scaled[order], weights[order]
    suffix = np.concatenate((np.cumsum(heavy[::-1])[::-1], [0.0]))
    begin = len(scores) - int(np.count_nonzero(sure))
    near = np.searchsorted(scores, scores - reach, side="left")
    beyond = np.searchsorted(scores, scores + reach, side="right")
    low = math.exp(-2.0 * shift)
    ahead_max = np.maximum(suffix[near] - heavy, 0.0)
    rest_min = (np.maximum(suffix[begin] - suffix[np.maximum(near, begin)], 0.0) + heavy) * low
    ahead_min = suffix[np.maximum(beyond, begin)] * low
    rest_max = np.maximum(suffix[0] - suffix[beyond], 0.0)
    kept_sure, kept_possible = np.empty_like(sure), np.empty_like(sure)
    kept_sure[order] = ahead_max < (share - _SLACK) * (ahead_max + rest_min)
    kept_possible[order] = ahead_min <= (share + _SLACK) * (ahead_min + rest_max)
    return sure & kept_sure, kept_possible

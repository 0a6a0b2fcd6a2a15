"""Recomputes one hop in one prefill and compares it with the commitment. Call it on the engine's thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from efedllm.commitments.canonical import WireDtype, as_dtype, decode
from efedllm.commitments.messages import EXACT_PROFILE, HALF_PROFILE, HopCommit, JobSpec, ids_hash
from efedllm.commitments.taps import TapTree
from efedllm.engine.protocol import Executor, Float32, StepItem, constants_of
from efedllm.engine.taps import TAP_BYTES, TapExecutor
from efedllm.errors import ModelError, ProtocolError
from efedllm.sampling.exact import sample_exact_rows
from efedllm.sampling.float import SamplingSpec, are_consistent, is_consistent
from efedllm_verifier.conditioning import HALF_STEP, STEP, own_spread
from efedllm_verifier.leaf import Leaf, LeafFault
from efedllm_verifier.statistic import (
    HALF_LIMITS,
    MEASURED,
    SEVERE_AT,
    BackendError,
    DeviationLimits,
    HopStatistic,
    Outcome,
    compare,
    compare_exact,
    logit_tolerances,
)

# Logit rows computed at once: bounds memory for large vocabularies.
_LOGIT_ROWS = 64
# What an exact engine reports when its numbers left the range of float32.
_OVERFLOW = "overflow"


@dataclass(frozen=True)
class HopResult:
    """`statistic` is None when a fault was found before anything was computed.

    taps: canonical bytes of every position's tap when an exact hop was found to be right, else empty. bytes_fetched:
    boundary bytes read from nodes for it.
    """

    statistic: HopStatistic | None
    fault: LeafFault | None
    taps: bytes = b""
    bytes_fetched: int = 0

    @property
    def outcome(self) -> Outcome:
        return Outcome.PASS if self.fault is None else self.fault.outcome


def rerun(
    executor: Executor, leaf: Leaf, spec: JobSpec, inputs: bytes, outputs: bytes, *, limits: DeviationLimits = MEASURED
) -> HopResult:
    """Check one hop against the published weights in `executor` (of exactly the hop's layer range).

    inputs, outputs: canonical bytes under the committed roots. A hop of an exact model (the commit's profile, which
    must be the registered one) is compared bit for bit, one that declares bfloat16 within HALF_LIMITS, any other within
    `limits`; whether `limits` slash goes for both. Raises BackendError when our own side fails.
    """
    commit = leaf.commit
    dtype = as_dtype(commit.wire_dtype)
    exact = commit.profile == EXACT_PROFILE
    if commit.profile == HALF_PROFILE:
        # If float32 differences are not slashable for this model, bfloat16 differences are not either.
        limits = replace(HALF_LIMITS, slashable=limits.slashable)
    if exact != (constants_of(executor) is not None):
        raise BackendError("our engine computes in another profile than the hop")
    if commit.tokens > executor.max_positions:
        return HopResult(None, LeafFault("context-exceeded", f"{commit.tokens} positions exceed the model's context"))
    try:
        given = decode(inputs, WireDtype.I32 if commit.lo == 0 else dtype, 1 if commit.lo == 0 else executor.hidden)
    except ProtocolError as error:
        return HopResult(None, LeafFault("bad-input-bytes", error.message))
    try:
        committed = decode(outputs, dtype, executor.hidden)
    except ProtocolError as error:
        return HopResult(None, LeafFault("bad-output-bytes", error.message, Outcome.SEVERE))
    if commit.lo == 0:
        given = given[:, 0]
        fault = check_ids(given, leaf, spec, executor.vocab)
        if fault is not None:
            return HopResult(None, fault)
    try:
        ours, taps = _compute(executor, StepItem(executor.new_sequence(), given), exact=exact)
        residual = given if exact or commit.lo > 0 else executor.embed(given)
    except ModelError as error:
        if error.code == _OVERFLOW:
            return HopResult(None, _not_finite(executor, "the hop's output"))
        raise BackendError(str(error)) from error
    if not np.isfinite(ours).all():
        return HopResult(None, _not_finite(executor, "the hop's output"))
    try:
        statistic = (
            compare_exact(outputs, ours)
            if exact
            else compared(executor, given, committed, ours, residual, dtype, limits, leaf.hash)
        )
    except ModelError as error:
        raise BackendError(str(error)) from error
    if statistic.outcome is not Outcome.PASS:
        how = f"{statistic.worst:.0f} values differ, first" if exact else f"statistic {statistic.worst:.3g}"
        detail = f"{how} at position {statistic.position}, mismatch {statistic.mismatch:.2%}"
        return HopResult(statistic, LeafFault("wrong-output", detail, statistic.outcome))
    if exact and tap_tree(commit, taps).root() != commit.aux_root:
        # The rows are right, so the node could have computed the taps: it committed to values it did not compute.
        return HopResult(statistic, LeafFault("wrong-taps", "the committed taps are not the hop's", Outcome.SEVERE))
    if not executor.has_head:
        return HopResult(statistic, None, taps)
    fault = check_tokens(executor, committed, spec, leaf.emitted or (), exact=exact, limits=limits)
    return HopResult(statistic, fault, taps if fault is None else b"")


def compared(
    executor: Executor,
    given: NDArray[Any],
    committed: NDArray[Any],
    ours: Float32,
    residual: NDArray[Any],
    dtype: WireDtype,
    limits: DeviationLimits,
    seed: bytes,
) -> HopStatistic:
    """`compare` for a float hop. A hop that does not pass is compared again with the spread of our own recomputation.

    given: the hop's input, ids [n] or states [n, hidden]; residual: the same in hidden space; seed: see `own_spread`.
    Raises BackendError as `compare` does, and ModelError.
    """
    found = compare(committed, ours, residual, dtype, limits)
    if found.outcome is Outcome.PASS or not np.isfinite(committed).all():
        return found
    spread = own_spread(executor, given, ours, seed, HALF_STEP if limits.half else STEP)
    return compare(committed, ours, residual, dtype, limits, spread)


def _compute(executor: Executor, item: StepItem, *, exact: bool) -> tuple[Float32, bytes]:
    """States of one step and, for an exact engine, the taps of its positions."""
    if not exact:
        return executor.step([item])[0], b""
    (tapped,) = cast(TapExecutor, executor).step_with_taps([item])
    return tapped.states, tapped.taps.tobytes()


def tap_tree(commit: HopCommit, taps: bytes) -> TapTree:
    """The tree over `taps`, the taps of all positions of `commit`. Its root is the aux root of an honest hop."""
    tree = TapTree(commit.job_id, commit.hop, TAP_BYTES)
    tree.append(taps)
    return tree


def _not_finite(executor: Executor, what: str) -> LeafFault:
    """The fault of a hop for whose committed input `what` is not finite: no honest hop commits to such an input.

    Raises BackendError when our engine gives no finite output for a plain input either, as then the engine is broken.
    Abstaining without this check would let a node escape its audit by one leaf with such an input.
    """
    plain = np.zeros(1, np.int32) if executor.has_embedding else np.zeros((1, executor.hidden), np.float32)
    try:
        healthy = bool(np.isfinite(executor.step([StepItem(executor.new_sequence(), plain)])[0]).all())
    except ModelError as error:
        raise BackendError(f"{what} is not finite, nor anything else: {error}") from error
    if not healthy:
        raise BackendError(f"{what} is not finite, nor anything else that our engine computes")
    return LeafFault("not-finite", f"{what} is not finite for the committed input")


def check_ids(ids: NDArray[np.int32], leaf: Leaf, spec: JobSpec, vocab: int) -> LeafFault | None:
    """Check boundary 0: the prompt is the one the client signed, and any shown emitted ids follow it."""
    if ids.min() < 0 or ids.max() >= vocab:
        return LeafFault("bad-input-bytes", f"a token id is outside 0..{vocab - 1}")
    head = ids[: spec.prompt_tokens]
    prompt = head if len(ids) >= spec.prompt_tokens else np.asarray(leaf.prompt or (), dtype=np.int64)
    if len(prompt) != spec.prompt_tokens or not np.array_equal(prompt[: len(head)], head):
        return LeafFault("wrong-prompt", "the prompt is not the one the client signed", Outcome.SEVERE)
    try:
        if ids_hash(prompt) != spec.prompt_hash:
            return LeafFault("wrong-prompt", "the prompt is not the one the client signed", Outcome.SEVERE)
    except ProtocolError as error:
        return LeafFault("wrong-prompt", error.message)
    fed = ids[spec.prompt_tokens :]
    if leaf.emitted is not None and not np.array_equal(fed, np.asarray(leaf.emitted[: len(fed)], dtype=np.int64)):
        return LeafFault("wrong-tokens-fed", "the tokens fed back are not the emitted ones", Outcome.SEVERE)
    return None


def check_tokens(
    executor: Executor,
    hidden: NDArray[Any],
    spec: JobSpec,
    emitted: tuple[int, ...],
    *,
    exact: bool = False,
    limits: DeviationLimits = MEASURED,
) -> LeafFault | None:
    """Check that every emitted token was sampled from the logits of the committed hidden rows [n, hidden].

    For a float model: that it could have been, within the tolerance of `limits`.
    """
    sampling = SamplingSpec.from_job(spec)
    first = spec.prompt_tokens - 1
    worst: LeafFault | None = None
    for start in range(0, len(emitted), _LOGIT_ROWS):
        tokens = emitted[start : start + _LOGIT_ROWS]
        try:
            rows = executor.logits(np.ascontiguousarray(hidden[first + start : first + start + len(tokens)]))
        except ModelError as error:
            if error.code == _OVERFLOW:
                return _not_finite(executor, "logits")
            raise BackendError(str(error)) from error
        if not exact and not np.isfinite(rows).all():
            return _not_finite(executor, "logits")
        # The token after row r stands at absolute position r + 1.
        position = spec.prompt_tokens + start
        if exact:
            try:
                ours = sample_exact_rows(rows, sampling, position)
            except ProtocolError:
                return _not_finite(executor, "logits")
            for offset in np.flatnonzero(ours != np.asarray(tokens)).tolist():
                detail = f"token {tokens[offset]} at position {position + offset} is not {ours[offset]}"
                return LeafFault("wrong-token", detail, Outcome.SEVERE)
            continue
        tolerances = logit_tolerances(rows, limits).tolist()
        for offset in np.flatnonzero(~are_consistent(rows, sampling, position, tokens, tolerances)).tolist():
            where = f"token {tokens[offset]} at position {position + offset}"
            wide = SEVERE_AT * tolerances[offset]
            if not is_consistent(rows[offset], sampling, position + offset, tokens[offset], wide):
                return LeafFault("wrong-token", f"{where} was not sampled", limits.capped_token(Outcome.SEVERE))
            worst = worst or LeafFault("wrong-token", f"{where} is doubtful")
    return worst

"""Nodes that compute a float model in bfloat16: measured by wider limits, slashed for what no precision explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import EXACT_PROFILE, FLOAT_PROFILE, HALF_PROFILE, JobSpec, RouteHop, SignedCommit
from efedllm.commitments.signing import Signer
from efedllm.engine.half import HalfShardEngine
from efedllm.engine.protocol import Executor, StepItem, compute_of
from efedllm.engine.select import load_executor
from efedllm.errors import ModelError, ProtocolError
from efedllm.sampling.float import SamplingSpec
from efedllm_bench.cheats.outputs import PassThrough, Remembered, Shifted
from efedllm_node.jobs.own_commit import OwnHop, check_previous
from efedllm_verifier.leaf import Leaf
from efedllm_verifier.rerun import HopResult, rerun
from efedllm_verifier.statistic import (
    FAIL_AT,
    HALF_LIMITS,
    HALF_LONE_FAIL_AT,
    HALF_MOST,
    HALF_MOST_SEVERE_AT,
    MEASURED,
    SEVERE_AT,
    Limits,
    Outcome,
    compare,
    grade_half,
    per_position,
)
from tests.verifier.audit_lab import (
    DOMAIN,
    PROMPT,
    RANGES,
    Trace,
    as_int8,
    decode_route,
    hop_commit,
    job_spec,
    load,
    noisy,
    skipping,
    tamper,
    truncated,
)

WARM = SamplingSpec(900, 50, 950_000, bytes(range(32)))
NEW = 24


def halves(published: Path) -> list[HalfShardEngine]:
    return [HalfShardEngine.load_half(published, *layers) for layers in RANGES]


def audit(
    published: Path,
    hop: int,
    trace: Trace,
    profile: int,
    wire: WireDtype = WireDtype.F32,
    limits: Limits = MEASURED,
) -> HopResult:
    spec = job_spec(PROMPT, NEW, wire, WARM)
    commit = replace(hop_commit(spec, hop, len(RANGES), RANGES[hop], trace, 256), profile=profile)
    leaf = Leaf(commit, b"", b"", None, None, trace.emitted if hop == len(RANGES) - 1 else None)
    inputs, outputs = trace.boundaries[hop : hop + 2]
    return rerun(load(published, *RANGES[hop]), leaf, spec, inputs, outputs, limits=limits)


@pytest.mark.parametrize("wire", [WireDtype.F32, WireDtype.BF16])
def test_who_declares_bfloat16_passes_and_who_conceals_it_does_not(published: Path, wire: WireDtype) -> None:
    engines = halves(published)
    assert [compute_of(engine) for engine in engines] == ["bfloat16"] * 3
    trace = decode_route(engines, PROMPT, NEW, wire, WARM)
    for hop in range(len(RANGES)):
        declared = audit(published, hop, trace, HALF_PROFILE, wire)
        assert declared.fault is None
        assert declared.statistic is not None
        # Ten times less than what anybody is slashed for, at the worst position.
        assert 0 < 10 * declared.statistic.worst <= SEVERE_AT
        assert audit(published, hop, trace, FLOAT_PROFILE, wire).outcome is Outcome.SEVERE


def another_model(weight: torch.Tensor) -> torch.Tensor:
    """Weights of the same size and spread."""
    return weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))


def as_int4(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    return (weight / scale).round() * scale


def audited(published: Path, hop: int, cheat: Executor, profile: int, limits: Limits = MEASURED) -> HopResult:
    engines: list[Executor] = [load(published, *layers) for layers in RANGES]
    engines[hop] = cheat
    return audit(published, hop, decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM), profile, limits=limits)


def kept_rows(published: Path, hop: int) -> Executor:
    """Rows of another job."""
    other = [token + 1 for token in PROMPT]
    trace = decode_route([load(published, *layers) for layers in RANGES], other, NEW, WireDtype.F32, WARM)
    rows = np.frombuffer(trace.boundaries[hop + 1], "<f4").reshape(-1, 256)
    return Remembered(load(published, *RANGES[hop]), rows)


@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_gross_cheats_of_the_class_are_severe(published: Path, hop: int) -> None:
    def engine() -> Executor:
        return load(published, *RANGES[hop])

    cheats: dict[str, Executor] = {
        "no layer computed": PassThrough(engine()),
        "another model": tamper(load(published, *RANGES[hop]), another_model),
        "weights off by half": tamper(load(published, *RANGES[hop]), noisy(0.5)),
        "rows of another job": kept_rows(published, hop),
        "rows of the position before": Shifted(engine()),
    }
    for name, cheat in cheats.items():
        found = audited(published, hop, cheat, HALF_PROFILE)
        assert found.outcome is Outcome.SEVERE, name
        assert found.fault is not None
        assert found.fault.code == "wrong-output"
    if hop == 0:
        # A model whose limits slash nobody slashes nobody who computes it in bfloat16.
        lenient = Limits(slashable=False)
        assert audited(published, hop, PassThrough(engine()), HALF_PROFILE, lenient).outcome is Outcome.FAIL


@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_precision_is_never_severe_in_the_class(published: Path, hop: int) -> None:
    def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Executor:
        return tamper(load(published, *RANGES[hop]), change)

    cheats: dict[str, tuple[Executor, Outcome]] = {
        "8 bits": (changed(as_int8), Outcome.PASS),
        "4 bits": (changed(as_int4), Outcome.FAIL),
        "nine tenths of the rank": (truncated(load(published, *RANGES[hop]), 0.9), Outcome.FAIL),
        "a layer left out": (skipping(load(published, *RANGES[hop]), 1), Outcome.FAIL),
    }
    for name, (cheat, expected) in cheats.items():
        assert audited(published, hop, cheat, HALF_PROFILE).outcome is expected, name


def test_tokens_of_the_class_fail_and_are_never_severe(published: Path) -> None:
    """Its logits are not ours, and nothing bounds how far they are from them."""
    trace = decode_route([load(published, *layers) for layers in RANGES], PROMPT, NEW, WireDtype.F32, WARM)
    last = len(RANGES) - 1
    wrong = replace(trace, emitted=tuple((token + 1) % 4096 for token in trace.emitted))
    found = audit(published, last, wrong, HALF_PROFILE)
    assert found.fault is not None
    assert (found.fault.code, found.outcome) == ("wrong-token", Outcome.FAIL)
    assert audit(published, last, wrong, FLOAT_PROFILE).outcome is Outcome.SEVERE


def test_odd_prompts_slash_nobody_honest(published: Path) -> None:
    """Tokens in no order find the positions where eight bits decide something the other way."""
    honest, ours = HalfShardEngine.load_half(published, 0, 3), load(published, 0, 3)
    generator = np.random.default_rng(5)
    for _ in range(20):
        ids = generator.integers(0, 4096, 24).astype(np.int32)
        rows, reference = (engine.step([StepItem(engine.new_sequence(), ids)])[0] for engine in (honest, ours))
        x = ours.embed(ids)
        stats = per_position(rows, reference, x, WireDtype.F32, HALF_LIMITS)
        assert compare(rows, reference, x, WireDtype.F32, HALF_LIMITS).outcome is Outcome.PASS
        assert 2 * stats.max() < SEVERE_AT
        assert 10 * np.quantile(stats, HALF_MOST) < HALF_MOST_SEVERE_AT


@pytest.mark.parametrize(
    ("stats", "outcome"),
    [
        ([0.3] * 8, Outcome.PASS),
        # One position far off, or two of eight: a near tie, and no cheat of a whole job.
        ([0.3] * 7 + [HALF_LONE_FAIL_AT], Outcome.PASS),
        ([0.3] * 7 + [HALF_LONE_FAIL_AT + 0.1], Outcome.FAIL),
        ([0.3] * 6 + [100.0] * 2, Outcome.FAIL),
        ([0.3] * 5 + [100.0] * 3, Outcome.SEVERE),
        ([0.3] * 5 + [FAIL_AT + 0.1] * 3, Outcome.FAIL),
        # Far off everywhere, nowhere beyond what is severe.
        ([SEVERE_AT] * 8, Outcome.FAIL),
        ([HALF_MOST_SEVERE_AT] * 7 + [100.0], Outcome.FAIL),
        ([SEVERE_AT + 0.1], Outcome.SEVERE),
        ([float("inf")] * 3, Outcome.SEVERE),
        ([float("nan")], Outcome.SEVERE),
    ],
)
def test_grades_of_the_class(stats: list[float], outcome: Outcome) -> None:
    assert grade_half(np.array(stats)) is outcome


def test_neighbours_may_compute_in_different_dtypes_but_not_in_different_profiles() -> None:
    signer = Signer(b"\x05" * 32)
    spec = JobSpec(bytes(32), 0, bytes(32), 4, 1, 0, 0, 1_000_000, bytes(32), int(WireDtype.F32))
    trace = Trace((bytes(16), bytes(16), bytes(16)), ())
    commit = hop_commit(spec, 0, 2, (0, 4), trace, 1)
    own = OwnHop(
        job_id=spec.job_id,
        spec_hash=spec.digest(DOMAIN),
        hop=1,
        lo=4,
        hi=8,
        wire_dtype=spec.wire_dtype,
        model_id=ZERO32,
        shard_root=ZERO32,
        tokens=commit.tokens,
        in_root=commit.out_root,
        out_root=ZERO32,
        emitted=None,
        profile=FLOAT_PROFILE,
    )
    previous = RouteHop("0x" + "11" * 20, signer.address, "http://x", 0, 4, None)

    def signed(profile: int) -> SignedCommit:
        made = replace(commit, profile=profile, aux_root=b"\x01" * 32 if profile == EXACT_PROFILE else ZERO32)
        return SignedCommit(made, signer.sign(made.digest(DOMAIN)))

    for profile in (FLOAT_PROFILE, HALF_PROFILE):
        check_previous(signed(profile), own, previous, DOMAIN)
        check_previous(signed(profile), replace(own, profile=HALF_PROFILE), previous, DOMAIN)
    with pytest.raises(ProtocolError) as mixed:
        check_previous(signed(EXACT_PROFILE), own, previous, DOMAIN)
    assert mixed.value.code == "commit-mismatch"


def test_bfloat16_is_for_float_models_in_memory(published: Path) -> None:
    engine = load_executor(published, 0, 3, half=True)
    assert compute_of(engine) == "bfloat16"
    assert compute_of(load_executor(published, 0, 3)) == "float32"
    assert np.isfinite(engine.embed(np.array([1, 2], np.int32))).all()
    with pytest.raises(ModelError) as refused:
        load_executor(published, 0, 3, half=True, ram=1 << 30)
    assert refused.value.code == "no-bfloat16"

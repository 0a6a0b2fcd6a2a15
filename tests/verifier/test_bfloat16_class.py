"""Nodes that compute a float model in bfloat16: measured by wider limits, and slashed by none of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import EXACT_PROFILE, FLOAT_PROFILE, HALF_PROFILE, JobSpec, RouteHop, SignedCommit
from efedllm.commitments.signing import Signer
from efedllm.engine.half import HalfShardEngine
from efedllm.engine.protocol import Executor, compute_of
from efedllm.engine.select import load_executor
from efedllm.errors import ModelError, ProtocolError
from efedllm.sampling import SamplingSpec
from node.checks import OwnHop, check_previous
from tests.verifier.audit_lab import (
    DOMAIN,
    PROMPT,
    RANGES,
    Trace,
    decode_route,
    hop_commit,
    job_spec,
    load,
    noisy,
    skipping,
    tamper,
)
from verifier.leaf import Leaf
from verifier.rerun import HopResult, rerun
from verifier.statistic import Outcome

WARM = SamplingSpec(900, 50, 950_000, bytes(range(32)))
NEW = 24


def halves(published: Path) -> list[HalfShardEngine]:
    return [HalfShardEngine.load_half(published, *layers) for layers in RANGES]


def audit(published: Path, hop: int, trace: Trace, profile: int, wire: WireDtype = WireDtype.F32) -> HopResult:
    spec = job_spec(PROMPT, NEW, wire, WARM)
    commit = replace(hop_commit(spec, hop, len(RANGES), RANGES[hop], trace, 256), profile=profile)
    leaf = Leaf(commit, b"", b"", None, None, trace.emitted if hop == len(RANGES) - 1 else None)
    return rerun(load(published, *RANGES[hop]), leaf, spec, trace.boundaries[hop], trace.boundaries[hop + 1])


@pytest.mark.parametrize("wire", [WireDtype.F32, WireDtype.BF16])
def test_who_declares_bfloat16_passes_and_who_conceals_it_does_not(published: Path, wire: WireDtype) -> None:
    engines = halves(published)
    assert [compute_of(engine) for engine in engines] == ["bfloat16"] * 3
    trace = decode_route(engines, PROMPT, NEW, wire, WARM)
    for hop in range(len(RANGES)):
        declared = audit(published, hop, trace, HALF_PROFILE, wire)
        assert declared.fault is None
        assert declared.statistic is not None
        assert 0 < declared.statistic.worst < 1
        assert audit(published, hop, trace, FLOAT_PROFILE, wire).outcome is Outcome.SEVERE


def test_gross_cheats_of_the_class_fail_and_slash_nobody(published: Path) -> None:
    honest: list[Executor] = [load(published, *layers) for layers in RANGES]
    for cheat in (
        skipping(load(published, *RANGES[1]), 1),
        tamper(load(published, *RANGES[1]), noisy(0.5)),
    ):
        trace = decode_route([honest[0], cheat, honest[2]], PROMPT, NEW, WireDtype.F32, WARM)
        assert audit(published, 1, trace, HALF_PROFILE).outcome is Outcome.FAIL
        assert audit(published, 1, trace, FLOAT_PROFILE).outcome is Outcome.SEVERE


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

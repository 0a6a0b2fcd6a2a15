"""Auditing an exact model: equal bytes pass, one wrong bit is severe, and whoever computes otherwise accuses nobody."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efedllm.chain.types import ModelInfo
from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.messages import HopCommit, JobSpec
from efedllm.commitments.taps import TapTree
from efedllm.compression import CompressOptions, compress
from efedllm.compression.profile import settle_profile
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.select import load_executor
from efedllm.engine.shard import ShardEngine
from efedllm.engine.taps import TAP_BYTES
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm.sampling.exact import sample_exact
from efedllm.sampling.float import SamplingSpec, sample
from efedllm_verifier.engine_cache import EngineCache
from efedllm_verifier.leaf import Leaf
from efedllm_verifier.rerun import HopResult, rerun
from efedllm_verifier.statistic import BackendError, Outcome, compare_exact
from tests.verifier.audit_lab import BUNDLED, PROMPT, RANGES, Bits, Trace, decode_route, hop_commit, job_spec

NEW = 16
LAST = len(RANGES) - 1
GREEDY = SamplingSpec(0, 0, 1_000_000, bytes(32))
WARM = SamplingSpec(900, 50, 950_000, bytes(range(32)))


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "model"
    compress(CompressOptions(model=str(BUNDLED), out=out, quant="int8", method="int8"))
    settled = settle_profile(out, "auto")
    assert (settled.manifest.profile, settled.reason) == ("exact", "")
    return out


@pytest.fixture(scope="module")
def engines(exact_model: Path) -> list[ExactShardEngine]:
    made = [load_executor(exact_model, *layers) for layers in RANGES]
    exact = [engine for engine in made if isinstance(engine, ExactShardEngine)]
    assert len(exact) == len(RANGES)
    return exact


@pytest.fixture(scope="module")
def warm_trace(engines: list[ExactShardEngine]) -> Trace:
    return decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM, sample_exact)


def commit_of(engine: ExactShardEngine, hop: int, trace: Trace, spec: JobSpec) -> HopCommit:
    """What an honest node commits to: its taps are those of the committed input."""
    kind, dim = (WireDtype.I32, 1) if hop == 0 else (WireDtype.F32, engine.hidden)
    given = decode(trace.boundaries[hop], kind, dim)
    (tapped,) = engine.step_with_taps([StepItem(engine.new_sequence(), given[:, 0] if hop == 0 else given)])
    tree = TapTree(spec.job_id, hop, TAP_BYTES)
    tree.append(tapped.taps.tobytes())
    return hop_commit(spec, hop, len(RANGES), RANGES[hop], trace, engine.hidden, profile=1, aux_root=tree.root())


def audit(engines: list[ExactShardEngine], hop: int, trace: Trace, sampling: SamplingSpec = WARM) -> HopResult:
    spec = job_spec(PROMPT, NEW, WireDtype.F32, sampling)
    commit = commit_of(engines[hop], hop, trace, spec)
    leaf = Leaf(commit, b"", b"", None, None, trace.emitted if hop == LAST else None)
    return rerun(engines[hop], leaf, spec, trace.boundaries[hop], trace.boundaries[hop + 1])


def one_bit(payload: bytes, position: int, column: int, hidden: int) -> bytes:
    """The canonical bytes with the last bit of one float32 flipped."""
    bits = np.frombuffer(payload, dtype="<u4").reshape(-1, hidden).copy()
    bits[position, column] ^= 1
    return bits.tobytes()


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_an_honest_decode_equals_the_auditors_prefill(engines: list[ExactShardEngine], sampling: SamplingSpec) -> None:
    trace = decode_route(engines, PROMPT, NEW, WireDtype.F32, sampling, sample_exact)
    for hop in range(len(RANGES)):
        result = audit(engines, hop, trace, sampling)
        assert result.fault is None
        assert result.statistic is not None
        assert (result.statistic.worst, result.statistic.mismatch) == (0.0, 0.0)


@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_the_last_bit_of_one_value_is_severe(engines: list[ExactShardEngine], warm_trace: Trace, hop: int) -> None:
    boundaries = list(warm_trace.boundaries)
    boundaries[hop + 1] = one_bit(boundaries[hop + 1], 43, 7, engines[hop].hidden)
    result = audit(engines, hop, replace(warm_trace, boundaries=tuple(boundaries)))
    assert result.fault is not None
    assert (result.fault.code, result.fault.outcome) == ("wrong-output", Outcome.SEVERE)
    assert "1 values differ, first at position 43" in result.fault.detail


def test_who_was_sent_a_wrong_bit_is_not_to_blame(engines: list[ExactShardEngine], warm_trace: Trace) -> None:
    first, second = engines[:2]
    wrong = one_bit(warm_trace.boundaries[1], 43, 7, first.hidden)
    given = decode(wrong, WireDtype.F32, first.hidden)
    states = second.step([StepItem(second.new_sequence(), given)])[0]
    boundaries = (warm_trace.boundaries[0], wrong, encode(states, WireDtype.F32), warm_trace.boundaries[3])
    assert boundaries[2] != warm_trace.boundaries[2]
    trace = replace(warm_trace, boundaries=boundaries)
    assert audit(engines, 1, trace).fault is None
    assert audit(engines, 0, trace).outcome is Outcome.SEVERE


@pytest.mark.parametrize("at", [0, NEW - 1])
def test_another_token_is_severe(engines: list[ExactShardEngine], warm_trace: Trace, at: int) -> None:
    emitted = list(warm_trace.emitted)
    emitted[at] = (emitted[at] + 1) % 4096
    fault = audit(engines, LAST, replace(warm_trace, emitted=tuple(emitted))).fault
    assert fault is not None
    assert (fault.code, fault.outcome) == ("wrong-token", Outcome.SEVERE)
    assert f"position {len(PROMPT) + at}" in fault.detail


def test_the_float_sampler_is_not_this_profiles(engines: list[ExactShardEngine]) -> None:
    """A draw beside its own: another seed gives other tokens, and no tolerance hides it."""

    def own_luck(logits: Bits, spec: SamplingSpec, position: int) -> int:
        return sample(logits, replace(spec, seed=bytes(32)), position)

    trace = decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM, own_luck)
    fault = audit(engines, LAST, trace).fault
    assert fault is not None
    assert (fault.code, fault.outcome) == ("wrong-token", Outcome.SEVERE)


class Overflowing:
    """An exact engine whose numbers leave the range of float32 on every input but the shortest."""

    def __init__(self, engine: ExactShardEngine, *, healthy: bool) -> None:
        self._engine = engine
        self._healthy = healthy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, batch: Sequence[StepItem]) -> list[Bits]:
        if self._healthy and all(len(item.inputs) == 1 for item in batch):
            return list(self._engine.step(batch))
        raise ModelError("overflow", "The model's numbers left the range of float32.")

    def step_with_taps(self, batch: Sequence[StepItem]) -> list[Any]:
        return self.step(batch)


def test_an_input_that_overflows_is_no_escape(engines: list[ExactShardEngine], warm_trace: Trace) -> None:
    """An honest node would have refused it; only an engine that overflows always is our own fault."""
    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)
    leaf = Leaf(commit_of(engines[1], 1, warm_trace, spec), b"", b"")
    boundaries = warm_trace.boundaries[1], warm_trace.boundaries[2]
    result = rerun(Overflowing(engines[1], healthy=True), leaf, spec, *boundaries)
    assert result.fault is not None
    assert (result.fault.code, result.fault.outcome) == ("not-finite", Outcome.FAIL)
    with pytest.raises(BackendError, match="nor anything else"):
        rerun(Overflowing(engines[1], healthy=False), leaf, spec, *boundaries)


def test_our_own_engine_of_another_profile_accuses_nobody(
    exact_model: Path, engines: list[ExactShardEngine], warm_trace: Trace
) -> None:
    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)
    commit = commit_of(engines[1], 1, warm_trace, spec)
    boundaries = warm_trace.boundaries[1], warm_trace.boundaries[2]
    with pytest.raises(BackendError, match="profile"):
        rerun(ShardEngine.load(exact_model, *RANGES[1]), Leaf(commit, b"", b""), spec, *boundaries)
    with pytest.raises(BackendError, match="profile"):
        rerun(engines[1], Leaf(replace(commit, profile=0), b"", b""), spec, *boundaries)


def test_shapes_that_do_not_fit_accuse_nobody() -> None:
    ours = np.ones((2, 3), np.float32)
    assert compare_exact(encode(ours, WireDtype.F32), ours).outcome is Outcome.PASS
    with pytest.raises(BackendError):
        compare_exact(bytes(4), ours)
    with pytest.raises(BackendError):
        compare_exact(bytes(24), np.full((2, 3), np.nan, np.float32))


def model_of(published: Path) -> ModelInfo:
    m = Manifest.load(published)
    return ModelInfo(
        bytes(32), "0x", m.root, m.hash(), m.layers, m.hidden, 0, 0, m.profile_code, 1, "", 0, m.constants_hash
    )


async def test_forged_constants_are_no_ground_to_accuse_anyone(exact_model: Path, tmp_path: Path) -> None:
    engines = EngineCache(tmp_path, [str(exact_model)], 1 << 30)
    try:
        model = model_of(exact_model)
        engine = await engines.executor(model, 3, 4)
        assert isinstance(engine, ExactShardEngine)
        # Registered a second time, by somebody who names constants or a width that nobody has: also when the engine is
        # there.
        for forged in (bytes([7]) * 32, bytes(32)):
            with pytest.raises(BackendError, match="constants"):
                await engines.executor(replace(model, constants_hash=forged), 3, 4)
        with pytest.raises(BackendError, match="shape"):
            await engines.executor(replace(model, hidden=model.hidden + 1), 3, 4)
        assert await engines.executor(model, 3, 4) is engine
    finally:
        engines.close()


async def test_one_bit_beside_the_golden_vector_is_drift(exact_model: Path, tmp_path: Path) -> None:
    engines = EngineCache(tmp_path, [str(exact_model)], 1 << 30)
    try:
        await engines.executor(model_of(exact_model), 3, 4)
        (golden,) = (tmp_path / "golden").iterdir()
        values = np.load(golden)
        values.view(np.uint32)[5, 5] ^= 1
        np.save(golden, values)
        with pytest.raises(BackendError, match="drifted"):
            await engines.executor(model_of(exact_model), 3, 4)
    finally:
        engines.close()


async def test_the_profile_is_read_from_the_registered_manifest_only(exact_model: Path, tmp_path: Path) -> None:
    """The weights' root is the same: only the hash of the manifest tells that the profile was changed."""
    model = model_of(exact_model)
    forged = shutil.copytree(exact_model, tmp_path / "forged")
    Manifest.load(exact_model).with_profile("float").save(forged)
    engines = EngineCache(tmp_path / "home", [str(forged)], 1 << 30)
    try:
        with pytest.raises(ModelError) as caught:
            await engines.executor(model, 3, 4)
        assert caught.value.code == "wrong-manifest"
        assert isinstance(await engines.executor(model, 3, 4, [str(exact_model)]), ExactShardEngine)
    finally:
        engines.close()

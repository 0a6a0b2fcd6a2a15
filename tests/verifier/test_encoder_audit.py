"""An encoder's hop is audited like any other: one pass over the committed input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import PPM, JobSpec, ids_hash
from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.protocol import StepItem
from efedllm_bench.cheats import weights
from efedllm_verifier.engine_cache import self_test
from efedllm_verifier.leaf import Leaf
from efedllm_verifier.rerun import HopResult, rerun
from efedllm_verifier.statistic import Outcome
from tests.model_fixtures import bundled_model, checkpoint, published
from tests.verifier.audit_lab import Trace, hop_commit

__all__ = ["bundled_model", "checkpoint", "published"]

RANGES = ((0, 3), (3, 8))
TEXT = np.array([(7 * i * i + 3) % 96 for i in range(40)], dtype=np.int32)


@pytest.fixture(scope="module")
def encoder(published: Callable[..., Path]) -> Path:
    return published("bert", 0.5, "int8")


def encoded(engines: list[EncoderEngine]) -> Trace:
    """What an honest or tampered route commits to."""
    boundaries = [encode(TEXT.reshape(-1, 1), WireDtype.I32)]
    states = TEXT
    for engine in engines:
        boundaries.append(encode(engine.step([StepItem(engine.new_sequence(), states)])[0], WireDtype.F32))
        states = decode(boundaries[-1], WireDtype.F32, engine.hidden)
    return Trace(tuple(boundaries), ())


def audit(directory: Path, hop: int, trace: Trace) -> HopResult:
    spec = JobSpec(bytes(32), 0, ids_hash(TEXT), len(TEXT), 0, 0, 0, PPM, ZERO32, int(WireDtype.F32))
    commit = hop_commit(spec, hop, 2, RANGES[hop], trace, 32)
    leaf = Leaf(commit, b"", b"", None, None, () if hop == 1 else None)
    engine = EncoderEngine.load(directory, *RANGES[hop])
    return rerun(engine, leaf, spec, trace.boundaries[hop], trace.boundaries[hop + 1])


def load(directory: Path) -> list[EncoderEngine]:
    return [EncoderEngine.load(directory, *layers) for layers in RANGES]


def test_an_honest_text_passes_at_every_hop(encoder: Path) -> None:
    trace = encoded(load(encoder))
    for hop in range(2):
        result = audit(encoder, hop, trace)
        assert result.fault is None
        assert result.statistic is not None
        assert result.statistic.worst == 0.0


def test_falsified_weights_are_severe(encoder: Path, tmp_path: Path) -> None:
    forged = weights.falsify(encoder, tmp_path / "forged", weights.noise(1e-2), *RANGES[1])
    trace = encoded([EncoderEngine.load(encoder, *RANGES[0]), EncoderEngine.load(forged, *RANGES[1])])
    assert audit(encoder, 0, trace).outcome is Outcome.PASS
    assert audit(encoder, 1, trace).outcome is Outcome.SEVERE


def test_the_self_test_needs_no_decoding(encoder: Path, tmp_path: Path) -> None:
    engine = EncoderEngine.load(encoder, 0, 3)
    for _ in range(2):
        self_test(engine, tmp_path / "golden.npy")

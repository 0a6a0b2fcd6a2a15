"""Native products, pieces expanded for BLAS and whole float32 matrices: an auditor cannot tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efedllm.commitments.canonical import WireDtype
from efedllm.engine.attention import ATTENTION_NAME
from efedllm.engine.base import engine_shape
from efedllm.engine.linear import FEW_TOKENS, DenseLinear, NativeLinear
from efedllm.engine.load import load_modules
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.kernels.native import library
from efedllm.models.families import read_config
from efedllm.models.manifest import Manifest
from efedllm.models.skeleton import build_skeleton
from efedllm_bench.memory.synthetic import LlamaShape, publish_synthetic
from efedllm_verifier.statistic import compare

POSITIONS = FEW_TOKENS + 40
FAR_BELOW_ONE = 0.2


@pytest.fixture(params=["int8", "int4+rank"])
def model(request: pytest.FixtureRequest, published: Callable[..., Path], tmp_path: Path) -> Path:
    if library() is None:
        pytest.skip("no native kernels in this installation")
    if request.param == "int8":
        return published("bundled", 1.0, "int8")
    publish_synthetic(tmp_path / "model", LlamaShape(256, 704, 4, 8, 4, 96, 256), request.param)
    return tmp_path / "model"


def expanded(model: Path, lo: int, hi: int) -> ShardEngine:
    """The engine of a machine without native kernels."""
    manifest = Manifest.load(model)
    skeleton = build_skeleton(read_config(model), ATTENTION_NAME)
    with torch.inference_mode():
        modules = load_modules(model, manifest, skeleton, lo, hi, native=False)
    return ShardEngine(engine_shape(model, manifest, skeleton.config, lo, hi), modules)


def test_the_spread_between_decoding_prefill_and_float32_stays_far_below_the_tolerance(model: Path) -> None:
    engine = ShardEngine.load(model, 1, 4)
    layer = engine._modules.layers[0]
    assert any(isinstance(m, NativeLinear) for m in layer.modules())
    other = expanded(model, 1, 4)
    assert not any(isinstance(m, NativeLinear) for m in other._modules.layers[0].modules())
    assert engine.weight_bytes < other.weight_bytes / 2
    first = ShardEngine.load(model, 0, 1)
    ids = ((np.arange(POSITIONS) * 37 + 5) % min(first.vocab, 4000)).astype(np.int32)
    x = first.step([StepItem(first.new_sequence(), ids)])[0]
    prefill = engine.step([StepItem(engine.new_sequence(), x)])[0]
    sequence = engine.new_sequence()
    decoded = np.concatenate([engine.step([StepItem(sequence, row[None])])[0] for row in x])
    plain = other.step([StepItem(other.new_sequence(), x)])[0]
    assert not np.array_equal(decoded, prefill)
    for node, verifier in ((decoded, prefill), (decoded, plain), (prefill, plain)):
        assert compare(node, verifier, x, WireDtype.F32).worst < FAR_BELOW_ONE


def test_embedding_and_head_are_those_of_float32(model: Path) -> None:
    layers = Manifest.load(model).layers
    engine, other = ShardEngine.load(model, 0, layers), expanded(model, 0, layers)
    assert isinstance(engine._modules.head, NativeLinear)
    assert isinstance(other._modules.head, DenseLinear)
    ids = np.arange(engine.vocab - 20, engine.vocab, dtype=np.int32)
    np.testing.assert_array_equal(engine.embed(ids), other.embed(ids))
    states = np.random.default_rng(1).standard_normal((3, engine.hidden)).astype(np.float32)
    ours, theirs = engine.logits(states), other.logits(states)
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * float(np.abs(theirs).max()))

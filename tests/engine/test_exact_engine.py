"""The exact profile: the same bytes however the work is cut, batched, split and computed, and a float's quality."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from efedllm.commitments.canonical import WireDtype, encode
from efedllm.engine.exact.products import Kernel, exact_kernels
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from efedllm.models.exact import exact_allows, exact_obstacle
from efedllm.models.families import read_config
from efedllm.models.manifest import DTYPE_CODES, LAYER_EMBED, Manifest
from efedllm.models.tensorfile import TensorFile
from tests.engine.exact_golden import BUNDLED_CONSTANTS, GOLDEN, GPT2_CONSTANTS, PROMPT
from tests.engine.exact_helpers import (
    MODELS,
    PARTS,
    ExactPipeline,
    digest,
    load_parts,
    publish_repacked,
    split_rows,
    stream_ids,
)
from tests.engine.exact_reference import reference
from tests.model_fixtures import ROOT

# Every family and form once: a process for each instruction set is slow.
MOST_VARIED = ("llama-None", "mistral-12", "qwen2-packed", "qwen3-mixed", "gpt2-None", "gpt2-mixed")
NAMES = [f"{family}-{rank}" for family, rank in MODELS]


@pytest.fixture(scope="module")
def bundled(published: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact-bundled") / "bundled"
    out.symlink_to(published("bundled", 1.0, "int8"))
    return out


@pytest.fixture(scope="module")
def repacked(bundled: Path) -> Path:
    directory = bundled.parent / "bundled-packed"
    publish_repacked(bundled, directory)
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_has_the_committed_hash(name: str, models: dict[str, Path]) -> None:
    assert digest(ExactPipeline(load_parts(models[name], 1)).alone(PROMPT)) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_second_implementation_of_the_specification_gives_the_same_bytes(name: str, models: dict[str, Path]) -> None:
    tokens = PROMPT[:10]
    states, logits = reference(models[name]).run([int(t) for t in tokens])
    want = [h.tobytes() + y.tobytes() for h, y in zip(states, logits, strict=True)]
    assert ExactPipeline(load_parts(models[name], 1)).alone(tokens) == want


@pytest.mark.parametrize("name", NAMES)
def test_prefill_chunks_and_decoding_give_the_same_bytes(name: str, models: dict[str, Path]) -> None:
    pipeline = ExactPipeline(load_parts(models[name], 1))
    assert digest(pipeline.alone(PROMPT, (7, 8, 9, 23))) == GOLDEN[name]
    assert digest(pipeline.alone(PROMPT, range(1, len(PROMPT)))) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", PARTS[1:])
def test_any_split_gives_the_same_bytes(name: str, parts: int, models: dict[str, Path]) -> None:
    assert digest(ExactPipeline(load_parts(models[name], parts)).alone(PROMPT, (30, 31))) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_gives_each_sequence_the_bytes_it_gets_alone(name: str, models: dict[str, Path]) -> None:
    engines = load_parts(models[name], 2)
    pipeline = ExactPipeline(engines)
    before, now = [0, 9, 17, 30, 3, 1], [11, 1, 1, 6, 1, 39]
    inputs = [stream_ids(f"mixed {i}", a + b) for i, (a, b) in enumerate(zip(before, now, strict=True))]
    sequences = [pipeline.new() for _ in inputs]
    for sequence, tokens, start in zip(sequences, inputs, before, strict=True):
        if start:
            pipeline.feed([sequence], [tokens[:start]])
    together = pipeline.feed(sequences, [tokens[start:] for tokens, start in zip(inputs, before, strict=True)])
    for data, tokens, start, count in zip(together, inputs, before, now, strict=True):
        assert split_rows(data, engines[-1], count) == pipeline.alone(tokens)[start:]


@pytest.mark.parametrize("kernel", list(Kernel))
@pytest.mark.parametrize("threads", [1, 2])
def test_every_kernel_gives_the_same_bytes(kernel: Kernel, threads: int, models: dict[str, Path]) -> None:
    if kernel not in exact_kernels():
        pytest.skip(f"this machine has no exact {kernel} product")
    try:
        for name in ("llama-None", "qwen2-12", "llama-packed", "qwen3-mixed", "gpt2-mixed"):
            assert digest(ExactPipeline(load_parts(models[name], 1, kernel, threads)).alone(PROMPT)) == GOLDEN[name]
    finally:
        torch.set_num_threads(1)


def test_going_back_and_replaying_give_the_same_bytes(models: dict[str, Path]) -> None:
    pipeline = ExactPipeline(load_parts(models["mistral-12"], 2))
    sequence = pipeline.new()
    first = pipeline.feed([sequence], [PROMPT])
    for state in sequence:
        state.truncate(12)
    pipeline.feed([sequence], [stream_ids("other", 5)])
    for state in sequence:
        state.truncate(0)
    assert pipeline.feed([sequence], [PROMPT]) == first


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, 1),
        ({"ATEN_CPU_CAPABILITY": "default", "EFEDLLM_NATIVE": "plain"}, 1),
        ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}, 1),
        ({"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, 1),
        ({"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_WAIT_POLICY": "PASSIVE"}, 2),
    ],
)
def test_every_instruction_set_gives_the_committed_hashes(
    settings: dict[str, str], threads: int, models: dict[str, Path], bundled: Path, repacked: Path
) -> None:
    said = in_process(settings, threads, [*(models[name] for name in MOST_VARIED), bundled, repacked])
    # Where torch's int8 product saturates, as oneDNN's does without VNNI on some processors, the engine has to notice.
    assert (Kernel.INT8 in said["kernels"]) == said["int8_product_is_exact"]
    for name, by_kernel in said["hashes"].items():
        assert len(by_kernel) >= 2
        assert set(by_kernel.values()) == {GOLDEN[name]}, name


def in_process(settings: dict[str, str], threads: int, directories: list[Path]) -> Any:
    command = [sys.executable, "-m", "tests.engine.exact_worker", str(threads), *map(str, directories)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | settings
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_constants_have_the_committed_hash(bundled: Path, models: dict[str, Path]) -> None:
    assert ExactShardEngine.load(bundled, 0, 1).constants_hash.hex() == BUNDLED_CONSTANTS
    assert ExactShardEngine.load(models["gpt2-None"], 0, 1).constants_hash.hex() == GPT2_CONSTANTS


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_model_of_the_float_profile(name: str, models: dict[str, Path]) -> None:
    """Biases, windows, head norms and factors mean what they mean there."""
    exact, plain = ExactShardEngine.load(models[name], 0, 8), ShardEngine.load(models[name], 0, 8)
    logits = [e.logits(e.step([StepItem(e.new_sequence(), PROMPT)])[0]) for e in (exact, plain)]
    assert np.std(logits[1]) > 0.5
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=0.02)
    np.testing.assert_array_equal(exact.embed(PROMPT), plain.embed(PROMPT))


@pytest.mark.parametrize("form", ["bundled", "repacked"])
def test_its_cross_entropy_is_that_of_the_float_profile(form: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(form)
    text = (ROOT / "models" / "pylib-7m" / "held-out.txt").read_text("utf-8")
    ids = np.array(Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids[:512], dtype=np.int32)
    losses = []
    for engine in (ShardEngine.load(directory, 0, 8), ExactShardEngine.load(directory, 0, 8)):
        logits = torch.from_numpy(engine.logits(engine.step([StepItem(engine.new_sequence(), ids)])[0]))
        losses.append(float(cross_entropy(logits[:-1].double(), torch.from_numpy(ids[1:].astype(np.int64)))))
    assert losses[0] < 3.0
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_an_exact_engine_is_an_executor_with_small_weights_and_cache(models: dict[str, Path]) -> None:
    engine = ExactShardEngine.load(models["llama-None"], 0, 8, kernel=Kernel.INT8)
    executor: Executor = engine
    assert (executor.lo, executor.hi, executor.layers, executor.hidden, executor.vocab) == (0, 8, 8, 32, 96)
    plain = ShardEngine.load(models["llama-None"], 0, 8)
    in_float32 = sum(4 * t.rows * t.cols for t in Manifest.load(models["llama-None"]).tensors)
    assert executor.weight_bytes < in_float32 / 2
    # Two int8 rows each, whatever their width, and the factors.
    packed = ExactShardEngine.load(models["llama-packed"], 0, 8, kernel=Kernel.INT8)
    assert packed.weight_bytes < in_float32
    sequence, other = engine.new_sequence(), plain.new_sequence()
    engine.step([StepItem(sequence, PROMPT)])
    plain.step([StepItem(other, PROMPT)])
    assert sequence.nbytes < other.nbytes
    with pytest.raises(ModelError) as caught:
        sequence.truncate(41)
    assert caught.value.code == "bad-position"


def test_what_may_be_published_in_an_exact_model(models: dict[str, Path]) -> None:
    allowed = {
        (form, dtype) for form in ("dense", "lowrank", "packed") for dtype in DTYPE_CODES if exact_allows(form, dtype)
    }
    assert allowed == {("dense", "int8"), ("lowrank", "int8")} | {("packed", f"int{bits}") for bits in range(2, 7)}
    for name in NAMES:
        assert exact_obstacle(read_config(models[name]), Manifest.load(models[name]).tensors) is None


def test_a_factored_embedding_is_refused(models: dict[str, Path]) -> None:
    """It is a table of rows, and the head of a tied model."""
    tensors = [t.model_copy(update={"form": "lowrank"}) for t in Manifest.load(models["llama-None"]).tensors]
    tensors = [t for t in tensors if t.layer == LAYER_EMBED]
    assert "embed_tokens" in str(exact_obstacle(read_config(models["llama-None"]), tensors))


def test_minus_zero_and_subnormal_inputs_are_zero(models: dict[str, Path]) -> None:
    engine = ExactShardEngine.load(models["llama-None"], 4, 8)
    clean = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    clean[:, 3:5] = 0
    odd = clean.copy()
    odd[:, 3], odd[:, 4] = -0.0, 1e-40
    results = [engine.step([StepItem(engine.new_sequence(), states)])[0] for states in (clean, odd)]
    assert encode(results[0], WireDtype.F32) == encode(results[1], WireDtype.F32)
    zeros = engine.step([StepItem(engine.new_sequence(), np.zeros((3, 32), dtype=np.float32))])[0]
    assert not zeros.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_states_that_are_not_numbers_are_refused(value: float, models: dict[str, Path]) -> None:
    engine = ExactShardEngine.load(models["llama-None"], 4, 8)
    states = np.ones((2, 32), dtype=np.float32)
    states[1, 5] = value
    sequence = engine.new_sequence()
    for call in (lambda: engine.step([StepItem(sequence, states)]), lambda: engine.logits(states)):
        with pytest.raises(ModelError) as caught:
            call()
        assert caught.value.code == "bad-input"
    assert sequence.length == 0


def test_numbers_that_leave_float32_are_found_and_change_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    """Scales as large as float32 allows: an honest publisher never makes them, a dishonest one may."""
    directory = shutil.copytree(models["llama-None"], tmp_path / "model")
    path = directory / "layer-0004.safetensors"
    with TensorFile(path) as file:
        slot = file.slot("model.layers.4.mlp.down_proj.weight.scale")
    data = bytearray(path.read_bytes())
    data[slot.start : slot.end] = np.full(slot.shape, np.finfo(np.float32).max, dtype="<f4").tobytes()
    path.write_bytes(data)
    engine = ExactShardEngine.load(directory, 4, 8)
    largest = np.full((1, 32), np.finfo(np.float32).max, dtype=np.float32)
    sequence = engine.new_sequence()
    with pytest.raises(ModelError) as caught:
        engine.step([StepItem(sequence, largest)])
    assert caught.value.code == "overflow"
    assert sequence.length == 0


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("llama-None", {"hidden_act": "gelu"}, "gelu"),
        ("llama-None", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ("llama-None", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama-None", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial"),
        ("llama-None", {"rms_norm_eps": 0.0}, "epsilon"),
        ("llama-None", {"max_position_embeddings": (1 << 18) + 1}, "positions"),
        ("gpt2-None", {"activation_function": "relu"}, "relu"),
        ("gpt2-None", {"layer_norm_epsilon": 0.0}, "epsilon"),
    ],
)
def test_what_the_arithmetic_lacks_is_refused(
    name: str, change: dict[str, Any], word: str, models: dict[str, Path], tmp_path: Path
) -> None:
    directory = shutil.copytree(models[name], tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=word) as caught:
        ExactShardEngine.load(directory, 0, 8)
    assert caught.value.code == "unsupported-model"


@pytest.mark.parametrize(("family", "quant", "word"), [("llama", "none", "dense float32"), ("bert", "int8", "bert")])
def test_models_of_other_forms_are_refused(family: str, quant: str, word: str, published: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        ExactShardEngine.load(published(family, 1.0, quant), 0, 8)
    assert caught.value.code == "unsupported-model"


def test_weights_are_checked_against_the_root(models: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(models["qwen3-None"], tmp_path / "model")
    manifest = Manifest.load(directory)
    ExactShardEngine.load(directory, 0, 8, verify_root=manifest.root)
    path = directory / "layer-0002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="layer-0002") as caught:
        ExactShardEngine.load(directory, 0, 8, verify_root=manifest.root)
    assert caught.value.code == "corrupt-weights"

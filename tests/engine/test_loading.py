"""Loading published weights: only what the range needs, nothing unverified, factors kept apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from efedllm.engine.linear import LowRankLinear
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from efedllm.kernels.native import library
from efedllm.models.manifest import Manifest
from efedllm.models.tensorfile import TensorFile


@pytest.fixture
def model(published: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(published("llama-tied", 0.5, "int8"), tmp_path / "model")


def flip_byte(directory: Path, tensor: str) -> str:
    """Change one byte inside a tensor; returns the file's name."""
    entry = Manifest.load(directory).tensor(tensor)
    path = directory / entry.file
    with TensorFile(path) as file:
        offset = file.slot(entry.parts[0]).start
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    return entry.file


def test_a_range_needs_only_its_own_files(model: Path) -> None:
    manifest = Manifest.load(model)
    assert "embed.safetensors" not in manifest.files_for(3, 5)
    for file in manifest.files:
        if file.name not in manifest.files_for(3, 5):
            (model / file.name).unlink()
    engine = ShardEngine.load(model, 3, 5, verify_root=manifest.root)
    assert (engine.has_embedding, engine.has_head) == (False, False)
    with pytest.raises(ModelError) as caught:
        ShardEngine.load(model, 4, 6)
    assert caught.value.code == "missing-file"
    assert "layer-0005" in caught.value.message


def test_a_tied_head_is_served_from_the_embedding(model: Path) -> None:
    manifest = Manifest.load(model)
    assert "embed.safetensors" in manifest.files_for(6, 8)
    engine = ShardEngine.load(model, 0, 8)
    halves = [ShardEngine.load(model, 0, 4), ShardEngine.load(model, 4, 8)]
    # The native kernels keep int8 rows and their scales.
    embedding = 96 * 32 * 4 if library() is None else 96 * (32 + 4)
    # Held once by the whole model, twice by the two halves.
    assert sum(h.weight_bytes for h in halves) == engine.weight_bytes + embedding


def test_low_rank_weights_stay_factored_in_memory(published: Callable[..., Path]) -> None:
    dense = ShardEngine.load(published("llama"), 1, 2)
    factored = ShardEngine.load(published("llama", 0.5), 1, 2)
    assert factored.weight_bytes < 0.52 * dense.weight_bytes
    kinds = [type(m) for layer in factored._modules.layers for m in layer.modules()]
    assert kinds.count(LowRankLinear) == 7


@pytest.mark.parametrize(
    "tensor", ["model.layers.2.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight", "model.norm.weight"]
)
def test_a_changed_byte_is_refused_and_the_file_named(model: Path, tensor: str) -> None:
    root = Manifest.load(model).root
    name = flip_byte(model, tensor)
    with pytest.raises(ModelError) as caught:
        ShardEngine.load(model, 0, 8, verify_root=root)
    assert caught.value.code == "corrupt-weights"
    assert name in caught.value.message
    ShardEngine.load(model, 3, 5, verify_root=root)


def test_a_changed_config_is_refused(model: Path) -> None:
    root = Manifest.load(model).root
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        ShardEngine.load(model, 0, 2, verify_root=root)
    assert caught.value.code == "corrupt-weights"


def test_another_models_root_is_refused(model: Path, published: Callable[..., Path]) -> None:
    other = Manifest.load(published("llama")).root
    with pytest.raises(ModelError) as caught:
        ShardEngine.load(model, 0, 2, verify_root=other)
    assert caught.value.code == "wrong-root"


@pytest.mark.parametrize("cut", [0, 6, 40, -1])
def test_a_cut_file_is_refused_even_unverified(model: Path, cut: int) -> None:
    path = model / "layer-0001.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match="layer-0001") as caught:
        ShardEngine.load(model, 0, 2)
    assert caught.value.code in ("corrupt-weights", "missing-file")


@pytest.mark.parametrize(("lo", "hi"), [(0, 9), (4, 4), (-1, 2), (5, 3)])
def test_a_range_outside_the_model_is_refused(model: Path, lo: int, hi: int) -> None:
    with pytest.raises(ModelError, match="8 layers") as caught:
        ShardEngine.load(model, lo, hi)
    assert caught.value.code == "bad-range"


def test_a_config_of_another_shape_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match="inconsistent"):
        ShardEngine.load(model, 0, 2)
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    with pytest.raises(ModelError, match="different models"):
        ShardEngine.load(model, 0, 2)
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ModelError, match="mamba") as caught:
        ShardEngine.load(model, 0, 2)
    assert caught.value.code == "unsupported-model"

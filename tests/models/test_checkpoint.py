"""Reading checkpoints as they are found: sharded, without the leading module, damaged, of other kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from efedllm.compression import CompressOptions, compress
from efedllm.errors import ModelError
from efedllm.models.checkpoint import Checkpoint, resolve
from efedllm.models.families import read_config
from efedllm.models.manifest import Manifest
from efedllm.models.skeleton import build_skeleton
from tests.model_fixtures import family_config


def test_a_sharded_checkpoint_is_the_same_model(
    checkpoint: Callable[[str], Path], published: Callable[..., Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("qwen3"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    shutil.copy(checkpoint("qwen3") / "config.json", tmp_path / "sharded")
    files = Checkpoint(tmp_path / "sharded", "model").weight_files
    assert len(files) > 1
    manifest = compress(CompressOptions(str(tmp_path / "sharded"), tmp_path / "out"))
    assert manifest.root == Manifest.load(published("qwen3")).root


def test_a_checkpoint_without_the_leading_module_is_the_same_model(
    checkpoint: Callable[[str], Path], published: Callable[..., Path], tmp_path: Path
) -> None:
    """As GPT-2 lies on the hub, with the causal mask of old versions stored too."""
    source = shutil.copytree(checkpoint("gpt2"), tmp_path / "bare")
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(source / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, source / "model.safetensors")
    manifest = compress(CompressOptions(str(source), tmp_path / "out"))
    assert manifest.root == Manifest.load(published("gpt2")).root


def test_a_missing_or_damaged_tensor_is_an_error(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.5.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.5\.mlp\.up_proj") as caught:
        compress(CompressOptions(str(source), tmp_path / "out"))
    assert caught.value.code == "corrupt-weights"
    assert not (tmp_path / "out" / "manifest.json").exists()
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError) as caught:
        compress(CompressOptions(str(source), tmp_path / "out"))
    assert caught.value.code == "corrupt-weights"


def test_a_checkpoint_of_pickles_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(checkpoint("llama") / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        compress(CompressOptions(str(tmp_path), tmp_path / "out"))
    assert caught.value.code == "unsupported-checkpoint"


def test_an_index_cannot_point_outside_the_directory(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(checkpoint("llama") / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(ModelError) as caught:
        Checkpoint(tmp_path, "model")
    assert caught.value.code == "corrupt-weights"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_type": "granite"}, "unsupported-model"),
        ({"model_type": None}, "unsupported-model"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "unsupported-model"),
        ({"num_hidden_layers": "many"}, "no-model"),
    ],
)
def test_a_model_we_would_compute_wrongly_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    config = json.loads((checkpoint("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_what_is_neither_a_directory_nor_a_hub_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a directory") as caught:
        resolve(str(tmp_path / "absent"))
    assert caught.value.code == "no-model"
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path)
    assert caught.value.code == "no-model"


def test_skeletons_built_side_by_side_leave_the_default_dtype_alone(tmp_path: Path) -> None:
    """A bfloat16 checkpoint's config must not reach the arrays that other threads make meanwhile."""
    config = family_config("llama")
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    seen: set[torch.dtype] = set()

    def build(_: int) -> None:
        build_skeleton(read_config(tmp_path), "sdpa")
        seen.add(torch.zeros(1).dtype)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(build, range(24)))
    assert seen == {torch.float32}
    assert torch.get_default_dtype() is torch.float32

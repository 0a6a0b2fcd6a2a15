"""Packed matrices in the engine: exactly the published integers, as products."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from efedllm.compression import CompressOptions, compress
from efedllm.engine.linear import DenseLinear, PackedLinear
from efedllm.engine.load import load_modules
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from efedllm.models.families import read_config
from efedllm.models.manifest import Manifest, TensorInfo
from efedllm.models.packing import PACKED_BITS
from efedllm.models.skeleton import build_skeleton
from efedllm.models.tensorfile import TensorFile
from tests.engine.engine_helpers import Pipeline, ids, load_split
from tests.model_fixtures import with_words

KINDS = {"uint8": np.uint8, "int8": np.int8, "float32": np.float32}


@pytest.fixture(scope="module")
def packed(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random model of a family as lowrank+int4, or as auto at a budget; and its checkpoint beside it, in "model"."""
    made: dict[tuple[str, float | None], Path] = {}

    def make(family: str, budget: float | None = None) -> Path:
        key = (family, budget)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("packed")
            text = with_words(checkpoint(family), made[key] / "model")
            method: Any = "lowrank+int4" if budget is None else "auto"
            compress(
                CompressOptions(
                    str(made[key] / "model"), made[key] / "out", method=method, calibration=text, budget=budget
                )
            )
        return made[key] / "out"

    return make


def parts(directory: Path, tensor: TensorInfo) -> list[np.ndarray[Any, Any]]:
    with TensorFile(directory / tensor.file) as file:
        slots = [file.slot(name) for name in tensor.parts]
        return [
            np.frombuffer(bytes(file.view(name)), dtype=KINDS[slot.dtype]).reshape(slot.shape).copy()
            for name, slot in zip(tensor.parts, slots, strict=True)
        ]


def matrix(directory: Path, tensor: TensorInfo) -> Tensor:
    """float64, from the published bytes by the definition of the format, one integer at a time."""
    arrays = parts(directory, tensor)
    if tensor.form == "dense":
        scale = arrays[1][:, None].astype(np.float64) if tensor.dtype == "int8" else 1.0
        return torch.from_numpy(arrays[0] * scale)
    bits = PACKED_BITS[tensor.dtype]
    value = np.empty((tensor.rows, tensor.cols))
    for row in range(tensor.rows):
        stream = int.from_bytes(arrays[0][row].tobytes(), "little")
        for col in range(tensor.cols):
            integer = (stream >> (bits * col)) % (1 << bits) - (1 << (bits - 1))
            value[row, col] = integer * int(arrays[1][row, col // tensor.group]) * float(arrays[2][row])
    if tensor.rank:
        value += (arrays[3].astype(np.float64) * arrays[5]) @ arrays[4]
    return torch.from_numpy(value)


@pytest.mark.parametrize(("family", "budget"), [("llama-tied", None), ("gpt2", None), ("qwen2", 0.45)])
def test_the_engine_computes_what_the_published_bytes_mean(
    family: str, budget: float | None, packed: Callable[..., Path]
) -> None:
    directory = packed(family, budget)
    manifest = Manifest.load(directory)
    assert "packed" in {t.form for t in manifest.tensors}
    model = AutoModelForCausalLM.from_pretrained(
        directory.parent / "model", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for tensor in manifest.tensors:
            value = matrix(directory, tensor)
            module = model.get_submodule(tensor.name.rpartition(".")[0])
            model.get_parameter(tensor.name).copy_(value.T if isinstance(module, Conv1D) and value.ndim == 2 else value)
        want = model(torch.from_numpy(ids(1, 13).astype(np.int64))[None]).logits[0].numpy()
    for split in (1, 4):
        np.testing.assert_allclose(Pipeline(load_split(directory, split)).feed(ids(1, 13)), want, rtol=1e-4, atol=1e-4)


def test_the_base_in_memory_is_exactly_the_published_one(packed: Callable[..., Path]) -> None:
    directory = packed("llama-tied")
    manifest = Manifest.load(directory)
    with torch.inference_mode():
        modules = load_modules(directory, manifest, build_skeleton(read_config(directory), "eager"), 2, 3, native=False)
    found = {path: m for path, m in modules.layers[0].named_modules() if isinstance(m, PackedLinear)}
    assert len(found) == 7
    for path, module in found.items():
        tensor = manifest.tensor(f"model.layers.2.{path}.weight")
        bare = tensor.model_copy(update={"rank": 0})
        assert torch.equal(module.base, matrix(directory, bare).float())
        u, v, scale = (torch.from_numpy(a) for a in parts(directory, tensor)[3:])
        assert torch.equal(module.u, u.float())
        assert torch.equal(module.v, v.float() * scale[:, None])


def test_a_matrix_without_factors_is_one_product(packed: Callable[..., Path]) -> None:
    directory = packed("qwen2", 0.45)
    kinds = {t.rank for t in Manifest.load(directory).tensors if t.form == "packed"}
    assert 0 in kinds
    manifest = Manifest.load(directory)
    modules = load_modules(directory, manifest, build_skeleton(read_config(directory), "eager"), 0, 8, native=False)
    assert any(isinstance(m, DenseLinear) for layer in modules.layers for m in layer.modules())


@pytest.mark.parametrize("part", range(6))
def test_a_changed_byte_of_any_part_is_refused(part: int, packed: Callable[..., Path], tmp_path: Path) -> None:
    copy = shutil.copytree(packed("llama-tied"), tmp_path / "copy")
    manifest = Manifest.load(copy)
    tensor = manifest.tensor("model.layers.3.mlp.up_proj.weight")
    with TensorFile(copy / tensor.file) as file:
        offset = file.slot(tensor.parts[part]).start
    data = bytearray((copy / tensor.file).read_bytes())
    data[offset] ^= 1
    (copy / tensor.file).write_bytes(data)
    with pytest.raises(ModelError) as caught:
        ShardEngine.load(copy, 0, 8, verify_root=manifest.root)
    assert caught.value.code == "corrupt-weights"

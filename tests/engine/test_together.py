"""Modules that read the same input compute together, and what they share only once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efedllm.compression import CompressOptions, compress
from efedllm.engine import linear as linear_module
from efedllm.engine.linear import FEW_TOKENS, LowRankLinear, NativeLinear, Together
from efedllm.engine.load import held_by, load_modules
from efedllm.kernels.matrix import TiledLinears, TiledMatrix
from efedllm.kernels.native import library
from efedllm.models.families import read_config
from efedllm.models.skeleton import build_skeleton
from tests.model_fixtures import checkpoint, with_words

__all__ = ["checkpoint"]

GROUP = ("q_proj", "k_proj", "v_proj")


def attention(directory: Path, *, native: bool) -> nn.Module:
    manifest = compressed_manifest(directory)
    skeleton = build_skeleton(read_config(directory), "sdpa")
    return load_modules(directory, manifest, skeleton, 0, 1, native=native).layers[0].get_submodule("self_attn")


def compressed_manifest(directory: Path) -> Any:
    from efedllm.models.manifest import Manifest

    return Manifest.load(directory)


@pytest.fixture(scope="module")
def stacked(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first layer has one v for query, key and value, int8."""
    source = tmp_path_factory.mktemp("together")
    with_words(checkpoint("llama"), source / "worded")
    options = CompressOptions(
        str(source / "worded"),
        source / "out",
        method="kfac",
        budget=0.35,
        quant="int8",
        all_factored=True,
        calibration_tokens=1500,
    )
    manifest = compress(options)
    names = {f"model.layers.0.self_attn.{name}.weight" for name in GROUP}
    assert len({t.stack for t in manifest.tensors if t.name in names} - {""}) == 1
    return source / "out"


def test_parts_belong_to_their_input_and_are_taken_once() -> None:
    runs: list[Tensor] = []

    def run(x: Tensor) -> list[Tensor]:
        runs.append(x)
        return [x + 1, x + 2]

    together, a, b = Together(run), torch.zeros(1), torch.ones(1)
    assert [float(together.take(0, a)), float(together.take(1, a))] == [1, 2]
    assert len(runs) == 1
    # Another input, a part that was left, and the same input again.
    assert [float(together.take(1, b)), float(together.take(0, a)), float(together.take(1, a))] == [3, 1, 2]
    assert [float(together.take(0, a)), float(together.take(0, a))] == [1, 1]
    assert len(runs) == 5


@pytest.mark.parametrize("tokens", [1, 3, FEW_TOKENS + 1])
def test_a_shared_factor_is_multiplied_and_kept_once(
    tokens: int, stacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joined modules give what they give one by one."""
    if library() is None:
        pytest.skip("no compiler here")
    block = attention(stacked, native=True)
    modules = [block.get_submodule(name) for name in GROUP]
    assert all(isinstance(module, NativeLinear) for module in modules)
    tiles = [m._published.v.tiles.data_ptr() for m in modules if isinstance(m, NativeLinear) and m._published.v]
    assert len(tiles) == 3
    shared = {tile for tile in tiles if tiles.count(tile) > 1}
    assert len(shared) == 1
    held = {t.data_ptr(): t.nbytes for m in modules for t in held_by(m)}
    assert sum(held.values()) < sum(t.nbytes for m in modules for t in held_by(m))
    x = torch.linspace(-1, 1, tokens * 32).view(1, tokens, 32)
    calls: list[int] = []
    expanded: list[int] = []
    run, expand = TiledLinears.floats, TiledMatrix.expand

    def counted_run(self: TiledLinears, x: Tensor) -> Tensor:
        calls.append(len(self.maps))
        return run(self, x)

    def counted_expand(self: TiledMatrix, *given: Any) -> Tensor:
        expanded.append(self.tiles.data_ptr())
        return expand(self, *given)

    monkeypatch.setattr(TiledLinears, "floats", counted_run)
    monkeypatch.setattr(TiledMatrix, "expand", counted_expand)
    with torch.inference_mode():
        found = [module(x) for module in modules]
        if tokens <= FEW_TOKENS:
            assert (calls, expanded) == ([3], [])
        else:
            assert calls == []
            assert len(expanded) == len(set(expanded)) == len(modules) + len(set(tiles))
        alone = attention(stacked, native=False)
        wanted = [alone.get_submodule(name)(x) for name in GROUP]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_torch_multiplies_by_a_shared_factor_once(stacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = attention(stacked, native=False)
    modules = [block.get_submodule(name) for name in GROUP]
    x = torch.linspace(-1, 1, 96).view(3, 32)
    widths: list[int] = []
    plain = torch.nn.functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        widths.append(weight.shape[1])
        return plain(x, weight, bias)

    monkeypatch.setattr(linear_module, "linear", counted)
    found = [module(x) for module in modules]
    products_of_v = widths.count(32)
    lowrank = [module for module in modules if isinstance(module, LowRankLinear)]
    assert len(lowrank) == 3
    assert products_of_v == len({module.v.data_ptr() for module in lowrank}) < 3
    for module, one in zip(lowrank, found, strict=True):
        torch.testing.assert_close(one, x @ module.v.T @ module.u.T)

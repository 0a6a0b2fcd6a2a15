"""Compressing takes the memory of the largest layer, not of the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from efedllm.compression import CompressOptions, compress
from efedllm.compression.hidden_states import States
from efedllm.compression.original import Original
from efedllm.models.families import read_config
from efedllm.models.skeleton import build_skeleton
from tests.model_fixtures import CONTEXT, VOCAB, with_words

SHALLOW, DEEP = 2, 6
LAYER = 4 * (4 * 256 * 256 + 3 * 256 * 704)
"""Bytes of the matrices of one layer in float32."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A checkpoint of so many layers, in bfloat16."""

    def make(layers: int) -> Path:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        plain = tmp_path_factory.mktemp("deep") / "plain"
        # Several files, as large models have.
        LlamaForCausalLM(config).bfloat16().save_pretrained(plain, max_shard_size="4MB")
        return with_words(plain, plain.parent / "worded").parent

    return make


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that the results of torch's operations held at once.

    Counted from the tensors themselves: what a process occupies depends on the allocator and on other work. Views of
    what was there before, as of a mapped checkpoint, do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in _tensors((args, kwargs or {}))}
        made = func(*args, **(kwargs or {}))
        for one in _tensors(made):
            storage = one.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return made

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor) and not one.is_meta]


def test_the_peak_does_not_grow_with_the_layers(deep: Callable[[int], Path], tmp_path: Path) -> None:
    """kfac measures all layers backwards, keeps what it found, and makes them forwards."""
    peaks = {}
    for layers in (SHALLOW, DEEP):
        source = deep(layers)
        options = CompressOptions(
            str(source), tmp_path / str(layers), method="kfac", budget=0.3, quant="int8", calibration_tokens=128
        )
        with Live() as live:
            compress(options)
        peaks[layers] = live.peak
    assert peaks[SHALLOW] > LAYER
    assert peaks[DEEP] < peaks[SHALLOW] + LAYER / 4
    # The count does see layers that stay: those of the deep model, loaded together.
    original = Original(source, build_skeleton(read_config(source), "sdpa"), source / "calibration.txt")
    with Live() as live:
        held = [original.load(index) for index in range(DEEP)]
    assert live.peak >= DEEP * LAYER
    del held


@pytest.mark.parametrize("in_file", [False, True])
def test_states_come_back_as_they_were_written(in_file: bool, tmp_path: Path) -> None:
    states = States((5, 3, 4), 2, tmp_path / "states" if in_file else None)
    values = torch.arange(60, dtype=torch.float32).view(5, 3, 4)
    states.write(1, 0, values[:2])
    states.write(1, 2, values[2:])
    states.write(0, 0, -values)
    assert torch.equal(states.read(1, 0, 9), values)
    assert torch.equal(states.read(0, 1, 3), -values[1:3])
    states.close()
    assert not (tmp_path / "states").exists()

"""A published config.json is as hostile as any other file: nothing is built by it before it is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efedllm.engine.select import device_for, load_executor
from efedllm.errors import ModelError
from efedllm.models.exact import exact_obstacle
from efedllm.models.families import read_config
from efedllm_bench.cheats.weights import with_config


def test_a_config_of_another_size_builds_nothing(published: Callable[..., Path], tmp_path: Path) -> None:
    """A verifier that began to build so many layers would miss its other duties, and pay for it."""
    directory = published("llama", 0.9, "int8")
    assert load_executor(directory, 0, 1).hidden == read_config(directory).hidden_size
    for number, change in enumerate(({"num_hidden_layers": 1_000_000_000}, {"vocab_size": 7})):
        forged = with_config(directory, tmp_path / str(number), **change)
        for half in (False, True):
            with pytest.raises(ModelError) as caught:
                load_executor(forged, 0, 1, half=half)
            assert caught.value.code == "bad-manifest"


def test_the_exact_profile_bounds_its_tables(published: Callable[..., Path], tmp_path: Path) -> None:
    directory = published("llama", 0.9, "int8")
    assert "heads" not in str(exact_obstacle(read_config(directory), ()))
    wide = with_config(directory, tmp_path / "wide", head_dim=1 << 20)
    assert exact_obstacle(read_config(wide), ()) == "heads of more than 1024 numbers"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_said(published: Callable[..., Path]) -> None:
    with pytest.raises(ModelError) as caught:
        load_executor(published("llama", 0.9, "none"), 0, 1, device="cuda")
    assert caught.value.code == "no-device"
    assert "driver" in caught.value.hint


def test_what_runs_on_the_cpu_alone_is_not_sent_to_a_gpu(published: Callable[..., Path]) -> None:
    for where, half in ((published("bert", 0.9, "none"), False), (published("llama", 0.9, "none"), True)):
        with pytest.raises(ModelError) as caught:
            load_executor(where, 0, 1, device="cuda", half=half)
        assert (caught.value.code, caught.value.hint) == ("no-device", "Leave --device out.")
    assert device_for(published("bert", 0.9, "none"), "cuda") == "cpu"
    assert device_for(published("llama", 0.9, "none"), "cuda") == "cuda"

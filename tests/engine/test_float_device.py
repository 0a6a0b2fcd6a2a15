"""The float profile on a device other than the CPU, see `far_device`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efedllm.engine.protocol import Float32, StepItem
from efedllm.engine.select import load_executor
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from tests.engine.exact_helpers import MODELS, stream_ids
from tests.engine.far_device import FAR, FarDevice, far_device


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarDevice]:
    monkeypatch.setattr("efedllm.engine.shard.check_device", lambda _: None)
    # Modules cannot change the class of a parameter's tensor in place.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with far_device() as device:
        yield device
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("name", [f"{family}-{form}" for family, form in MODELS])
def test_another_device_computes_what_the_cpu_does(name: str, models: dict[str, Path]) -> None:
    layers = Manifest.load(models[name]).layers
    near, there = (ShardEngine.load(models[name], 0, layers, device=where) for where in ("cpu", FAR))
    for want, got in zip(_outputs(near), _outputs(there), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * float(np.abs(want).max()))


def _tf32(func: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """A product of numbers with 10 bits after the first, as GPUs make it that are told to be fast."""
    return func(*((part.view(torch.int32) & ~0x1FFF).view(torch.float32) for part in parts))


def test_a_device_that_multiplies_coarsely_is_refused(published: Callable[..., Path], far: FarDevice) -> None:
    directory = published("llama", 0.9, "none")
    assert load_executor(directory, 0, 8, device=FAR).hi == 8
    far.product = _tf32
    with pytest.raises(ModelError) as caught:
        load_executor(directory, 0, 8, device=FAR)
    assert caught.value.code == "inexact-device"
    assert "strays" in caught.value.message


def _outputs(engine: ShardEngine) -> list[Float32]:
    """A prefill, a chunk and two positions one by one, and their logits."""
    ids, sequence = stream_ids("float device", 20), engine.new_sequence()
    states = [engine.step([StepItem(sequence, ids[start:end])])[0] for start, end in pairwise((0, 11, 18, 19, 20))]
    return [*states, *(engine.logits(part) for part in states)]

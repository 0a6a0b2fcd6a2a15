"""The moments collected layer by layer are those of the whole model running at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from efedllm.compression.calibrate import Calibration, Moments, window_for
from efedllm.models.checkpoint import Checkpoint
from efedllm.models.families import read_config
from efedllm.models.skeleton import build_skeleton, is_matrix, linear_shape

WINDOWS = 7


def streamed(directory: Path, ids: Tensor) -> dict[str, Moments]:
    skeleton = build_skeleton(read_config(directory), "sdpa")
    family, checkpoint = skeleton.family, Checkpoint(directory, skeleton.family.base)
    positions = checkpoint.tensor(f"{family.positions}.weight") if family.positions else None
    calibration = Calibration(skeleton, ids, checkpoint.tensor(f"{family.embed}.weight"), positions)
    found: dict[str, Moments] = {}
    for index in range(skeleton.layers):
        layer, prefix = skeleton.layer(index), skeleton.layer_prefix(index)
        layer.load_state_dict({n: checkpoint.tensor(prefix + n) for n, _ in layer.named_parameters()}, assign=True)
        moments = calibration.advance(layer, collect=True)
        found |= {prefix + path: moment for path, moment in moments.items()}
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama-tied", "mistral", "qwen2"])
def test_moments_are_those_of_the_model(family: str, checkpoint: Callable[[str], Path]) -> None:
    directory = checkpoint(family)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    window = window_for(model.config)
    ids = torch.randint(0, 96, (WINDOWS, window), generator=torch.Generator().manual_seed(3))
    inputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[path] = args[0].flatten(0, 1).double()

        return hook

    for path, module in model.named_modules():
        if is_matrix(module) and path != "lm_head":
            module.register_forward_pre_hook(keep(path))
    with torch.no_grad():
        model(ids)
    found = streamed(directory, ids)
    assert set(found) == set(inputs)
    for path, x in inputs.items():
        module = model.get_submodule(path)
        rows, cols = linear_shape(module)
        gram = x.T @ x / len(x)
        weight = module.get_parameter("weight").detach().double()
        weight = weight if isinstance(module, nn.Linear) else weight.T
        want = gram if rows >= cols else weight @ gram @ weight.T
        got = found[path].inputs if rows >= cols else found[path].outputs
        assert got is not None
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert found[path].input_power == pytest.approx(float(gram.diagonal().mean()), rel=1e-5)


def test_a_window_fits_context_and_sliding_window(checkpoint: Callable[[str], Path]) -> None:
    windows = {family: window_for(read_config(checkpoint(family))) for family in ("llama", "mistral", "qwen2", "gpt2")}
    assert windows == {"llama": 64, "mistral": 5, "qwen2": 7, "gpt2": 64}

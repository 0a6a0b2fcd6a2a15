"""How much the loss of the model rises when the output of one matrix changes (K-FAC), layer by layer from the last.

For a change E of the weights the expected rise is 1/2 tr(M E G E^T), with G the second moment of the inputs and M that
of the gradients of the loss at the outputs, the targets being drawn from the model itself (the Fisher information).
So errors of different matrices can be compared. One layer is in memory at a time; the inputs of all layers lie in a
scratch file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from efedllm.compression.calibrate import Calibration
from efedllm.models.families import is_matrix

_BATCH_TOKENS = 2048
_HEAD_ENTRIES = 1 << 24
_SEED = 20_240_601


@dataclass(frozen=True)
class Curvature:
    """Second moments of one linear module: `inputs` [in, in] and output gradients `outputs` [out, out]; float64."""

    inputs: Tensor
    outputs: Tensor


class Backward:
    """The backward pass over a calibration text, whose states are at the embedding."""

    def __init__(self, calibration: Calibration, layers: int, load: Callable[[int], nn.Module], scratch: Path) -> None:
        """`load(i)` gives layer i with float32 weights; `scratch` is created, and removed by `close`."""
        self._calibration = calibration
        self._layers = layers
        self._load = load
        self._scratch = scratch
        shape = calibration.states.shape
        size = (layers + 1) * shape.numel()
        self._inputs = torch.from_file(str(scratch), shared=True, size=size, dtype=torch.float32).view(
            layers + 1, *shape
        )

    def close(self) -> None:
        self._scratch.unlink(missing_ok=True)

    def run(self, head: Callable[[Tensor], Tensor] | None) -> Iterator[tuple[int, dict[str, Curvature]]]:
        """(layer, curvature by module path), last layer first. `head` maps final states to logits.

        Without a head the final states are the result, and what rises is their squared error: the gradient of a
        projection on random signs has that curvature (J^T J) as its second moment.
        """
        for index in range(self._layers):
            self._inputs[index] = self._calibration.states
            layer = self._load(index)
            self._calibration.advance(layer, collect=False)
            layer.to("meta")
        self._inputs[self._layers] = self._calibration.states
        gradient = self._signs() if head is None else self._loss_gradient(head)
        for index in reversed(range(self._layers)):
            layer = self._load(index)
            yield index, self._back(layer, self._inputs[index], gradient)
            layer.to("meta")

    def _signs(self) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randint(0, 2, self._calibration.states.shape, generator=generator).float().mul_(2).sub_(1)

    def _loss_gradient(self, head: Callable[[Tensor], Tensor]) -> Tensor:
        states = self._inputs[self._layers]
        flat = states.reshape(-1, states.shape[-1])
        gradient = torch.empty_like(flat)
        generator = torch.Generator().manual_seed(_SEED)
        with torch.inference_mode():
            vocab = head(flat[:1].clone()).shape[-1]
        step = max(1, _HEAD_ENTRIES // vocab)
        for start in range(0, len(flat), step):
            x = flat[start : start + step].clone().requires_grad_()
            logs = torch.log_softmax(head(x), dim=-1)
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
            logs.gather(1, drawn).sum().neg().backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None
            gradient[start : start + step] = x.grad
        return gradient.view(states.shape)

    def _back(self, layer: nn.Module, inputs: Tensor, gradient: Tensor) -> dict[str, Curvature]:
        """Curvature of the layer; replaces `gradient` at its output by that at its input."""
        sums: dict[tuple[str, str], Tensor] = {}

        def add(kind: str, path: str, rows: Tensor) -> None:
            flat = rows.detach().reshape(-1, rows.shape[-1])
            product = (flat.T @ flat).double()
            sums[kind, path] = sums[kind, path] + product if (kind, path) in sums else product

        shared: dict[str, str] = {}
        seen: list[tuple[Tensor, str]] = []

        def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def collect(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                owner = next((name for tensor, name in seen if tensor is args[0]), path)
                shared[path] = owner
                if owner == path:
                    seen.append((args[0], path))
                    add("x", path, args[0])
                output.register_hook(lambda grad: add("g", path, grad))  # type: ignore[no-untyped-call]

            return collect

        layer.requires_grad_(False)
        handles = [
            module.register_forward_hook(hook(path)) for path, module in layer.named_modules() if is_matrix(module)
        ]
        windows, window, _ = inputs.shape
        step = max(1, _BATCH_TOKENS // window)
        try:
            for start in range(0, windows, step):
                x = inputs[start : start + step].clone().requires_grad_()
                self._calibration.forward(layer, x)().backward(gradient[start : start + step])  # type: ignore[no-untyped-call]
                assert x.grad is not None
                gradient[start : start + step] = x.grad
                seen.clear()
        finally:
            for handle in handles:
                handle.remove()
        tokens = windows * window
        grams = {path: sums["x", path] / tokens for path in set(shared.values())}
        return {path: Curvature(grams[owner], sums["g", path] / tokens) for path, owner in shared.items()}

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

from efedllm.compression.calibrate import Calibration, has_bias
from efedllm.compression.counter_random import signs, uniforms
from efedllm.compression.hidden_states import States
from efedllm.models.skeleton import is_matrix

_BATCH_TOKENS = 2048
_HEAD_ENTRIES = 1 << 24
_DRAWS = "EFL.curvature.1"


@dataclass(frozen=True)
class Curvature:
    """Second moments of one linear module: `inputs` [in, in]; of the gradients at its outputs `power` [out], their mean
    squares, and `outputs` [out, out] where asked for; `mean` of the inputs [in] where a module of the layer has a bias.
    float64. Modules that read the same tensor have the same `inputs` object."""

    inputs: Tensor
    power: Tensor
    outputs: Tensor | None
    mean: Tensor | None


class Backward:
    """The backward pass over a calibration text, whose states are at the embedding."""

    def __init__(
        self,
        calibration: Calibration,
        layers: int,
        load: Callable[[int], nn.Module],
        scratch: Path,
        *,
        outputs: bool = True,
    ) -> None:
        """`load(i)` gives layer i with float32 weights; `scratch` is created, and removed by `close`. `outputs`:
        whether the curvature between different outputs is wanted."""
        self._outputs = outputs
        self._calibration = calibration
        self._layers = layers
        self._load = load
        # The inputs of every layer, the result, and the gradient on its way back.
        self._states = States(calibration.shape, layers + 2, scratch)
        self._step = max(1, _BATCH_TOKENS // calibration.shape[1])

    def close(self) -> None:
        self._states.close()

    def run(self, head: Callable[[Tensor], Tensor] | None) -> Iterator[tuple[int, dict[str, Curvature]]]:
        """(layer, curvature by module path), last layer first. `head` maps final states to logits.

        Without a head the final states are the result, and what rises is their squared error: the gradient of a
        projection on random signs has that curvature (J^T J) as its second moment.
        """
        for index in range(self._layers):
            self._keep(index)
            layer = self._load(index)
            self._calibration.advance(layer, collect=False)
            layer.to("meta")
        self._keep(self._layers)
        for start in self._starts():
            self._first_gradient(head, start)
        for index in reversed(range(self._layers)):
            layer = self._load(index)
            found = self._back(layer, index)
            layer.to("meta")
            yield index, found

    def _starts(self) -> range:
        return range(0, self._calibration.shape[0], self._step)

    def _keep(self, slot: int) -> None:
        for start in self._starts():
            self._states.write(slot, start, self._calibration.states(start, start + self._step))

    def _first_gradient(self, head: Callable[[Tensor], Tensor] | None, start: int) -> None:
        """The gradient at the result, of windows from `start` on."""
        states = self._states.read(self._layers, start, start + self._step)
        window, hidden = states.shape[1:]
        if head is None:
            # Each step starts at a whole block of the stream of signs.
            drawn = signs(f"{_DRAWS}|{start}", 0, states.numel())
            self._states.write(self._layers + 1, start, drawn.view(states.shape))
            return
        flat = states.view(-1, hidden)
        gradient = torch.empty_like(flat)
        draws = uniforms(f"{_DRAWS}|{start}", 0, len(flat))
        with torch.inference_mode():
            vocab = head(flat[:1].clone()).shape[-1]
        rows = max(1, _HEAD_ENTRIES // vocab)
        for at in range(0, len(flat), rows):
            x = flat[at : at + rows].clone().requires_grad_()
            logs = torch.log_softmax(head(x), dim=-1)
            ends = logs.detach().double().exp_().cumsum(dim=1)
            wanted = draws[at : at + rows].unsqueeze(1) * ends[:, -1:]
            drawn = torch.searchsorted(ends, wanted, right=True).clamp_max(vocab - 1)
            logs.gather(1, drawn).sum().neg().backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None
            gradient[at : at + rows] = x.grad
        self._states.write(self._layers + 1, start, gradient.view(-1, window, hidden))

    def _back(self, layer: nn.Module, index: int) -> dict[str, Curvature]:
        """Curvature of the layer; replaces the gradient at its output by that at its input."""
        sums: dict[tuple[str, str], Tensor] = {}

        def accumulate(kind: str, path: str, value: Tensor) -> None:
            sums[kind, path] = sums[kind, path].add_(value) if (kind, path) in sums else value

        def add(kind: str, path: str, rows: Tensor) -> None:
            flat = rows.detach().reshape(-1, rows.shape[-1])
            accumulate(kind, path, (flat.T @ flat).double())

        def add_gradient(path: str, rows: Tensor) -> None:
            if self._outputs:
                add("g", path, rows)
            else:
                flat = rows.detach().reshape(-1, rows.shape[-1])
                accumulate("p", path, flat.square().sum(dim=0).double())

        biased = has_bias(layer)

        shared: dict[str, str] = {}
        seen: list[tuple[Tensor, str]] = []

        def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def collect(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                owner = next((name for tensor, name in seen if tensor is args[0]), path)
                shared[path] = owner
                if owner == path:
                    seen.append((args[0], path))
                    add("x", path, args[0])
                    if biased:
                        total = args[0].detach().flatten(0, -2).sum(dim=0, dtype=torch.float64)
                        accumulate("m", path, total)
                output.register_hook(lambda grad: add_gradient(path, grad))  # type: ignore[no-untyped-call]

            return collect

        layer.requires_grad_(False)
        handles = [
            module.register_forward_hook(hook(path)) for path, module in layer.named_modules() if is_matrix(module)
        ]
        gradients = self._layers + 1
        try:
            for start in self._starts():
                x = self._states.read(index, start, start + self._step).requires_grad_()
                gradient = self._states.read(gradients, start, start + self._step)
                self._calibration.forward(layer, x)().backward(gradient)  # type: ignore[no-untyped-call]
                assert x.grad is not None
                self._states.write(gradients, start, x.grad)
                seen.clear()
        finally:
            for handle in handles:
                handle.remove()
        tokens = self._calibration.tokens
        inputs = {path: sums["x", path] / tokens for path in set(shared.values())}
        means = {path: sums["m", path] / tokens if biased else None for path in inputs}
        found = {}
        for path, owner in shared.items():
            outputs = sums["g", path] / tokens if self._outputs else None
            power = sums["p", path] / tokens if outputs is None else outputs.diagonal()
            found[path] = Curvature(inputs[owner], power, outputs, means[owner])
        return found

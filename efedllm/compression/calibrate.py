"""Second moments of the inputs (or outputs) of every linear module of a layer, over a calibration text.

Hidden states of all windows are kept between layers, in a file when there are many, so that each layer runs once, with
only its own weights in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from efedllm.compression.hidden_states import LARGE, States
from efedllm.errors import ConfigError, ModelError
from efedllm.models.skeleton import Skeleton, is_matrix, linear_shape
from efedllm.models.tokenizer import open_tokenizer

WINDOW = 512
_BATCH_TOKENS = 4096


@dataclass
class Moments:
    """What compression needs about one linear module.

    Exactly one of `inputs` (E[x x^T], [in, in], when in <= out or all inputs are asked for) and `outputs` (E[y y^T] of
    y = W x without the bias, [out, out]) is set; float64. `input_power` is the mean of x_i^2; `mean` is E[x] [in],
    where a module of the layer has a bias.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    input_power: float = 0.0
    mean: Tensor | None = None


@dataclass
class _Sums:
    tokens: int = 0
    matrix: Tensor | None = None
    power: float = 0.0
    total: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        wide = rows.double()
        self._add(wide.T @ wide)

    def add_fast(self, rows: Tensor) -> None:
        """Products of one batch in float32, sums over batches in float64: half the time, and exact enough for a
        matrix that gets a ridge of a hundredth."""
        self._add((rows.T @ rows).double())

    def add_total(self, rows: Tensor) -> None:
        total = rows.sum(dim=0, dtype=torch.float64)
        self.total = total if self.total is None else self.total.add_(total)

    def _add(self, product: Tensor) -> None:
        self.matrix = product if self.matrix is None else self.matrix.add_(product)


@dataclass
class _Collector:
    """Accumulates over the batches of one layer. Modules fed the same tensor (q, k, v; gate, up) share one sum."""

    layer: nn.Module
    all_inputs: bool = False
    biased: bool = False
    sums: dict[str, _Sums] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    _seen: list[tuple[Tensor, str]] = field(default_factory=list)

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        handles = [
            module.register_forward_hook(self._hook(path))
            for path, module in self.layer.named_modules()
            if is_matrix(module)
        ]
        try:
            return forward()
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def collect(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            rows, cols = linear_shape(module)
            x = args[0].reshape(-1, cols)
            sums = self.sums.setdefault(path, _Sums())
            sums.tokens += len(x)
            if rows < cols and not self.all_inputs:
                bias = getattr(module, "bias", None)
                y = output.reshape(-1, rows)
                sums.add(y if bias is None else y - bias)
                sums.power += float(x.square().sum(dtype=torch.float64)) / cols
                if self.biased:
                    sums.add_total(x)
                return
            owner = next((name for tensor, name in self._seen if tensor is args[0]), None)
            if owner is None:
                self._seen.append((args[0], path))
                owner = path
                if self.all_inputs:
                    sums.add_fast(x)
                else:
                    sums.add(x)
                if self.biased:
                    sums.add_total(x)
            self.owners[path] = owner

        return collect

    def moments(self) -> dict[str, Moments]:
        result: dict[str, Moments] = {}
        means: dict[int, Tensor] = {}
        for path, sums in self.sums.items():
            shared = self.sums[self.owners.get(path, path)]
            assert shared.matrix is not None
            # The same object for all modules that share it: what is derived from it is derived once.
            matrix = means.setdefault(id(shared), shared.matrix / sums.tokens)
            mean = None if shared.total is None else shared.total / sums.tokens
            if path in self.owners:
                result[path] = Moments(inputs=matrix, input_power=float(matrix.diagonal().mean()), mean=mean)
            else:
                result[path] = Moments(outputs=matrix, input_power=sums.power / sums.tokens, mean=mean)
        return result


class Calibration:
    """The calibration text on its way through the model: float32 states [windows, window, hidden]."""

    def __init__(
        self,
        skeleton: Skeleton,
        ids: Tensor,
        embed: Tensor,
        positions: Tensor | None,
        segment: Tensor | None = None,
        norm: nn.Module | None = None,
        scratch: Path | None = None,
    ) -> None:
        """`ids` int64 [windows, window]; `embed` [vocab, hidden]; `positions` learned position embeddings, if any;
        `segment` [hidden] and `norm` (float32) of an encoder's embedding. States above a size go to `scratch`."""
        windows, window = ids.shape
        self.shape = (windows, window, embed.shape[1])
        self.step = max(1, _BATCH_TOKENS // window)
        large = 4 * windows * window * embed.shape[1] > LARGE
        self._states = States(self.shape, 1, scratch if large else None)
        self._positions = torch.arange(window)
        self._rotary = skeleton.rotary()
        for start in range(0, windows, self.step):
            x = embedding(ids[start : start + self.step], embed).float()
            if segment is not None:
                x = x + segment.float()
            if positions is not None:
                x = x + positions[:window].float()
            if norm is not None:
                with torch.inference_mode():
                    x = norm(x)
            self._states.write(0, start, x)

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]

    def states(self, start: int, stop: int) -> Tensor:
        """float32 [stop - start, window, hidden]: the inputs of the next layer, a copy."""
        return self._states.read(0, start, stop)

    def close(self) -> None:
        self._states.close()

    def advance(self, layer: nn.Module, *, collect: bool, all_inputs: bool = False) -> dict[str, Moments]:
        """Run `layer` (real float32 weights) on all windows; returns the moments of its linear modules if `collect`,
        those of the inputs even where the outputs are fewer if `all_inputs`."""
        collector = _Collector(layer, all_inputs, has_bias(layer))
        with torch.inference_mode():
            for start in range(0, self.shape[0], self.step):
                forward = self.forward(layer, self.states(start, start + self.step))
                self._states.write(0, start, collector.run(forward) if collect else forward())
            return collector.moments()

    def forward(self, layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
        """`layer` bound to states x [windows, window, hidden]."""
        where = self._positions.expand(len(x), -1)
        extra: dict[str, Any] = {}
        if self._rotary is not None:
            extra["position_embeddings"] = self._rotary(x, where)
        # Without a mask a decoder's attention is causal over the whole window, which `window_for` keeps inside any
        # sliding window, and an encoder's is over all of it.
        return lambda: layer(x, attention_mask=None, position_ids=where, **extra)


def has_bias(layer: nn.Module) -> bool:
    """Whether any linear module of the layer has one."""
    return any(is_matrix(module) and getattr(module, "bias", None) is not None for module in layer.modules())


def window_for(config: Any) -> int:
    """Tokens per calibration window: at most WINDOW, the model's context and its sliding window."""
    limits = [WINDOW, int(config.max_position_embeddings)]
    sliding = getattr(config, "sliding_window", None)
    return min([*limits, int(sliding)] if sliding else limits)


def read_tokens(text: Path, tokenizer: Path, window: int, tokens: int, vocab: int, *, by_line: bool = False) -> Tensor:
    """The first `tokens` tokens of a text file as int64 [windows, window]; a text shorter than a window is one short
    window. `by_line`: each line is a text of its own, with the marks around it that an encoder expects.

    Raises ConfigError "no-calibration" when the text is missing or empty and ModelError "no-tokenizer" without
    tokenizer.json.
    """
    try:
        content = text.read_text("utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(
            "no-calibration", f"The calibration text {text} cannot be read.", "Give a text file with --calibration."
        ) from error
    if not tokenizer.is_file():
        raise ModelError(
            "no-tokenizer",
            f"Calibration needs {tokenizer.name}, which the model does not have.",
            "Use --method truncate, or add the tokenizer.",
        )
    # About 8 characters per token at most in ordinary text: enough to fill `tokens` without reading a huge file to
    # the end.
    content = content[: 16 * tokens]
    lines = [line for line in content.splitlines() if line.strip()] if by_line else [content]
    found = [token for encoding in open_tokenizer(tokenizer).encode_batch(lines) for token in encoding.ids]
    ids = np.array(found[:tokens], dtype=np.int64)
    if len(ids) < 2:
        raise ConfigError("no-calibration", f"The calibration text {text} is empty.", "Give a longer text.")
    if int(ids.max()) >= vocab:
        raise ModelError(
            "no-tokenizer", "The tokenizer has more tokens than the model.", "Use the model's own tokenizer."
        )
    window = min(window, len(ids))
    whole = len(ids) // window * window
    return torch.from_numpy(ids[:whole]).view(-1, window)

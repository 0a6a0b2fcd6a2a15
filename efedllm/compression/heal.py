"""Distilling the factors of a published model against the original on the calibration text.

Loss: the KL divergence of the model's distribution from the original's, per token; for an encoder the squared error of
its states over their power. Adam on all factors at once, which are balanced, with a warm-up and a cosine. The last
windows of the text are kept apart, so that the loss on text that was not trained on can be shown. Both models are in
memory in float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efedllm.compression.counter_random import permutation
from efedllm.compression.distill_model import Student, encoded_file, original_model
from efedllm.compression.encode import Encoded
from efedllm.compression.original import Original
from efedllm.errors import ConfigError
from efedllm.models.manifest import Manifest

TOKENS = 1024
"""A step's tokens: as many whole windows as fit, at least one."""
_RATE = 3e-3
"""Adam's step at its longest, as a fraction of the root mean square of the factor it moves."""
_BETAS = (0.9, 0.95)
_WARM = 20
_APART = 8
_SAVE_EVERY = 25
_ORDER = "EFL.heal.1"

HealProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in total, loss of the last one)."""


@dataclass(frozen=True)
class Curve:
    """`losses` of the steps; `before` and `after` on the windows kept apart."""

    losses: tuple[float, ...]
    before: float
    after: float


class Healing:
    """`scratch` keeps parameters and optimiser between runs of the same `identity`; an interrupted run goes on from the
    last multiple of 25 steps, with the same result."""

    def __init__(
        self, original: Original, directory: Path, manifest: Manifest, steps: int, scratch: Path, identity: str
    ) -> None:
        """Raises ConfigError "nothing-to-heal" for a model without factors, "no-calibration" for too short a text."""
        self._teacher = original_model(original.source, original.skeleton)
        self._student = Student(self._teacher, directory, manifest)
        self._directory, self._manifest = directory, manifest
        self._steps, self._scratch, self._identity = steps, scratch, identity
        self._encoder = original.skeleton.family.is_encoder
        if not self._student.factored:
            raise ConfigError(
                "nothing-to-heal",
                "The compressed model has no factors that healing could train.",
                "Use --method kfac, or leave --heal out.",
            )
        windows = original.tokens(steps * TOKENS + _APART * TOKENS)
        apart = min(_APART, len(windows) // 4)
        if apart == 0:
            raise ConfigError("no-calibration", "The calibration text is too short to heal on.", "Give a longer text.")
        self._train, self._apart = windows[:-apart], windows[-apart:]
        self._batch = max(1, TOKENS // windows.shape[1])

    def run(self, progress: HealProgress) -> Curve:
        parameters = self._student.parameters()
        sizes = [float(parameter.detach().square().mean().sqrt()) for parameter in parameters]
        optimiser = torch.optim.Adam([{"params": [parameter]} for parameter in parameters], lr=_RATE, betas=_BETAS)
        losses: list[float] = []
        saved = self._load()
        if saved is None:
            before = self._measure()
        else:
            before, losses = saved["before"], list(saved["losses"])
            with torch.no_grad():
                for parameter, value in zip(parameters, saved["parameters"], strict=True):
                    parameter.copy_(value)
            optimiser.load_state_dict(saved["optimiser"])
        for step in range(len(losses), self._steps):
            for group, size in zip(optimiser.param_groups, sizes, strict=True):
                group["lr"] = _RATE * size * self._schedule(step)
            loss = self._loss(self._train[self._order(step)])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            progress(step + 1, self._steps, losses[-1])
            if (step + 1) % _SAVE_EVERY == 0:
                self._save(before, losses, parameters, optimiser)
        return Curve(tuple(losses), before, self._measure())

    def tensors(self, name: str) -> Iterator[Encoded]:
        """The healed tensors of layer file `name`."""
        infos = [tensor for tensor in self._manifest.tensors if tensor.file == name]
        return encoded_file(self._directory, infos, self._student.factored)

    def _schedule(self, step: int) -> float:
        warm = min(1.0, (step + 1) / min(_WARM, max(1, self._steps // 4)))
        return warm * (0.5 + 0.5 * math.cos(math.pi * step / self._steps))

    def _order(self, step: int) -> list[int]:
        """Windows of a step: every window once in each round, in an order of its own."""
        count = len(self._train)
        places = range(step * self._batch, (step + 1) * self._batch)
        return [permutation(f"{_ORDER}|{place // count}", count)[place % count] for place in places]

    def _loss(self, ids: Tensor) -> Tensor:
        if self._encoder:
            with torch.no_grad():
                wanted = self._teacher(ids).last_hidden_state
            error: Tensor = self._student.model(ids).last_hidden_state - wanted
            relative: Tensor = error.square().mean() / wanted.square().mean()
            return relative
        with torch.no_grad():
            wanted = torch.log_softmax(self._teacher(ids, use_cache=False).logits, dim=-1)
        found = torch.log_softmax(self._student.model(ids, use_cache=False).logits, dim=-1)
        divergence: Tensor = (wanted.exp() * (wanted - found)).sum(dim=-1).mean()
        return divergence

    def _measure(self) -> float:
        with torch.no_grad():
            losses = [float(self._loss(ids.unsqueeze(0))) for ids in self._apart]
        return sum(losses) / len(losses)

    def _load(self) -> dict[str, Any] | None:
        try:
            saved = torch.load(self._scratch, weights_only=True)
        except (OSError, RuntimeError, EOFError):
            # Nothing to go on from: it starts at the first step.
            return None
        return saved if isinstance(saved, dict) and saved.get("identity") == self._identity else None

    def _save(
        self, before: float, losses: list[float], parameters: Sequence[nn.Parameter], optimiser: torch.optim.Adam
    ) -> None:
        state = {
            "identity": self._identity,
            "before": before,
            "losses": losses,
            "parameters": [parameter.detach() for parameter in parameters],
            "optimiser": optimiser.state_dict(),
        }
        partial = self._scratch.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self._scratch)


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(losses: Sequence[float], width: int = 60) -> str:
    """The curve in one line of text: means of equal stretches, the highest one as a full block."""
    if not losses:
        return ""
    width = min(width, len(losses))
    edges = [len(losses) * i // width for i in range(width + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(means)
    return "".join(_BARS[min(7, int(8 * mean / top))] if top > 0 else _BARS[0] for mean in means)


def identity(options_hash: str, manifest: Manifest, steps: int) -> str:
    """What a state saved in between belongs to."""
    return json.dumps([options_hash, manifest.weights_root, steps])

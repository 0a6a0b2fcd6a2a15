"""The checkpoint being compressed: its matrices, layers and head, and the calibration text at its embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from efedllm.compression.allocation import Shape
from efedllm.compression.calibrate import Calibration, read_tokens, window_for
from efedllm.compression.encode import storage_dtype
from efedllm.models.checkpoint import Checkpoint
from efedllm.models.skeleton import Skeleton, is_matrix, linear_shape


class Original:
    """A checkpoint directory with its module tree; weights are read when asked for."""

    def __init__(self, source: Path, skeleton: Skeleton, text: Path) -> None:
        self.source = source
        self.skeleton = skeleton
        self.text = text
        self.checkpoint = Checkpoint(source, skeleton.family.base)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """(out, in) of every matrix of the layers, by tensor name."""
        skeleton = self.skeleton
        return {
            f"{skeleton.layer_prefix(index)}{path}.weight": linear_shape(module)
            for index in range(skeleton.layers)
            for path, module in skeleton.layer(index).named_modules()
            if is_matrix(module)
        }

    @cached_property
    def dtype(self) -> torch.dtype:
        """What 16-bit parts are published in: the dtype of the embedding."""
        return storage_dtype(self.checkpoint.tensor(f"{self.skeleton.family.embed}.weight"))

    def matrix(self, name: str) -> Tensor:
        """A weight matrix as published, [out, in]: GPT-2's Conv1D keeps [in, out]."""
        tensor = self.checkpoint.tensor(name)
        module = self.skeleton.model.get_submodule(name.removesuffix(".weight"))
        return tensor if isinstance(module, nn.Linear) else tensor.T

    def load(self, index: int) -> nn.Module:
        """Layer `index` with its float32 weights; `.to("meta")` lets go of them."""
        layer, prefix = self.skeleton.layer(index), self.skeleton.layer_prefix(index)
        names = [name for name, _ in layer.named_parameters()]
        layer.load_state_dict({name: self.checkpoint.tensor(prefix + name).float() for name in names}, assign=True)
        return layer

    def head(self) -> Callable[[Tensor], Tensor] | None:
        """Final norm and head in float32: states [n, hidden] -> logits [n, vocab]; None for an encoder."""
        family = self.skeleton.family
        if family.is_encoder:
            return None
        norm = self.module(family.norm)
        owner = family.embed if self.skeleton.tied else family.head
        weight = self.checkpoint.tensor(f"{owner}.weight").float()

        def run(states: Tensor) -> Tensor:
            logits: Tensor = norm(states) @ weight.T
            return logits

        return run

    def module(self, path: str) -> nn.Module:
        """The module at `path` with its float32 parameters."""
        module = self.skeleton.model.get_submodule(path).requires_grad_(False)
        names = [name for name, _ in module.named_parameters()]
        state = {name: self.checkpoint.tensor(f"{path}.{name}").float() for name in names}
        module.load_state_dict(state, assign=True)
        return module

    def text_hash(self) -> str:
        return hashlib.sha256(self.text.read_bytes()).hexdigest()

    def tokens(self, limit: int) -> Tensor:
        """The first `limit` tokens of the calibration text, int64 [windows, window]."""
        skeleton = self.skeleton
        return read_tokens(
            self.text,
            self.source / "tokenizer.json",
            window_for(skeleton.config),
            limit,
            skeleton.vocab,
            by_line=skeleton.family.is_encoder,
        )

    def calibration(self, limit: int, scratch: Path) -> Calibration:
        """The first `limit` tokens of the calibration text at the embedding; large states go to `scratch`."""
        family = self.skeleton.family
        ids = self.tokens(limit)
        positions = self.checkpoint.tensor(f"{family.positions}.weight") if family.positions else None
        embed = self.checkpoint.tensor(f"{family.embed}.weight")
        segment = norm = None
        if family.types is not None and family.embed_norm is not None:
            segment = self.checkpoint.tensor(f"{family.types}.weight")[0]
            norm = self.module(family.embed_norm)
        return Calibration(self.skeleton, ids, embed, positions, segment, norm, scratch=scratch)

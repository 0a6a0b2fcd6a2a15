"""The module tree of a model without its weights. Importing this loads the model code of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from efedllm.models.families import FAMILIES, Family, is_tied


@dataclass(frozen=True)
class Skeleton:
    """The module tree of a model on the meta device: shapes without weights."""

    config: Any
    family: Family
    model: nn.Module

    @property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def hidden(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocab(self) -> int:
        return int(self.config.vocab_size)

    @property
    def tied(self) -> bool:
        """Whether the head multiplies by the token embedding."""
        return is_tied(self.config)

    def layer(self, index: int) -> nn.Module:
        return self.model.get_submodule(f"{self.family.layers}.{index}")

    def layer_prefix(self, index: int) -> str:
        return self.family.layer_prefix(index)

    def rotary(self) -> nn.Module | None:
        """A new RoPE module with real buffers, on the CPU."""
        if self.family.rotary is None:
            return None
        kind = type(self.model.get_submodule(self.family.rotary))
        module: nn.Module = kind(config=self.config)
        return module


def build_skeleton(config: Any, attention: str) -> Skeleton:
    """The model on the meta device, its attention dispatched to the registered function named `attention`."""
    family = FAMILIES[config.model_type]
    kind = AutoModel if family.is_encoder else AutoModelForCausalLM
    # A dtype of its own: with the config's, transformers changes the process's default for a moment, and two threads
    # that do so at once can leave it changed.
    with torch.device("meta"):
        model = kind.from_config(config, attn_implementation=attention, dtype=torch.float32)
    model.eval()
    return Skeleton(model.config, family, model)


def is_matrix(module: nn.Module) -> bool:
    """Whether `module` multiplies by a weight matrix (and so can be factored or quantised)."""
    return isinstance(module, nn.Linear | Conv1D)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear module, the shape it is published in. GPT-2's Conv1D keeps its weight as [in, out]."""
    rows, cols = module.get_parameter("weight").shape
    return (cols, rows) if isinstance(module, Conv1D) else (rows, cols)

"""Where the parts of a model lie in the module tree of transformers, for the families we run.

The engine drives the layers itself instead of calling the model's own forward, so a family is listed here only when its
forward is exactly: embed (plus learned positions), layers, norm, head; or, for an encoder, embed, norm, layers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from efedllm.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Dotted names of modules inside the model. `positions`: learned position embedding; `rotary`: RoPE module.

    An encoder has neither final `norm` nor `head` (both ""): every position sees the whole text, and the states after
    the last layer are the result. `types`: embedding of the segment, of which only the first is used; `embed_norm`: the
    norm of the sum of all embeddings.
    """

    base: str
    layers: str
    embed: str
    norm: str
    positions: str | None = None
    rotary: str | None = None
    head: str = "lm_head"
    types: str | None = None
    embed_norm: str | None = None

    @property
    def is_encoder(self) -> bool:
        return not self.head


_LLAMA = Family("model", "model.layers", "model.embed_tokens", "model.norm", rotary="model.rotary_emb")
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Family("transformer", "transformer.h", "transformer.wte", "transformer.ln_f", positions="transformer.wpe"),
    "bert": Family(
        "bert",
        "encoder.layer",
        "embeddings.word_embeddings",
        norm="",
        positions="embeddings.position_embeddings",
        head="",
        types="embeddings.token_type_embeddings",
        embed_norm="embeddings.LayerNorm",
    ),
}

# Their angles depend on the longest sequence in the batch: sessions batched together would change each other.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


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
        return not self.family.is_encoder and bool(self.config.tie_word_embeddings)

    def layer(self, index: int) -> nn.Module:
        return self.model.get_submodule(f"{self.family.layers}.{index}")

    def layer_prefix(self, index: int) -> str:
        return f"{self.family.layers}.{index}."

    def rotary(self) -> nn.Module | None:
        """A new RoPE module with real buffers, on the CPU."""
        if self.family.rotary is None:
            return None
        kind = type(self.model.get_submodule(self.family.rotary))
        module: nn.Module = kind(config=self.config)
        return module


def read_config(directory: Path) -> Any:
    """The transformers config in `directory`.

    Raises ModelError "no-model" without a readable config.json and "unsupported-model" for a family we do not run.
    """
    path = directory / "config.json"
    try:
        kind = json.loads(path.read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "no-model", f"{directory} has no readable config.json.", "Give the directory of a transformers model."
        ) from error
    if kind not in FAMILIES:
        raise ModelError(
            "unsupported-model",
            f"Models of type {kind} are not supported.",
            f"Supported types: {', '.join(sorted(FAMILIES))}.",
        )
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (StrictDataclassError, ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            "no-model", f"{path} is not a valid {kind} config: {reason}.", "Fetch the model again."
        ) from error
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _LENGTH_DEPENDENT_ROPE or getattr(config, "add_cross_attention", False):
        raise ModelError(
            "unsupported-model",
            f"{directory.name} uses {rope} rotary embeddings or cross-attention, which are not supported.",
            "Choose a model with fixed rotary embeddings.",
        )
    if FAMILIES[kind].is_encoder and getattr(config, "is_decoder", False):
        raise ModelError(
            "unsupported-model",
            f"{directory.name} is a {kind} used as a decoder.",
            "Choose an encoder, or a causal LM.",
        )
    return config


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

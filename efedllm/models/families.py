"""The supported model families: names of their modules in transformers, and reading their config.json.

The engine drives the layers itself instead of calling the model's own forward, so a family is listed here only when its
forward is exactly: embed (plus learned positions), layers, norm, head; or, for an encoder, embed, norm, layers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def layer_prefix(self, index: int) -> str:
        """What the names of the tensors of layer `index` begin with."""
        return f"{self.layers}.{index}."


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


def read_json(directory: Path) -> dict[str, Any]:
    """config.json in `directory`, which names a `model_type`. Raises ModelError "no-model"."""
    try:
        raw: dict[str, Any] = json.loads((directory / "config.json").read_text("utf-8"))
        str(raw["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "no-model", f"{directory} has no readable config.json.", "Give the directory of a transformers model."
        ) from error
    return raw


def read_config(directory: Path) -> Any:
    """The transformers config in `directory`.

    Raises ModelError "no-model" without a readable config.json and "unsupported-model" for a family we do not run.
    """
    # Takes longer than loading torch; the exact profile does without it, see `exact_config`.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    kind = read_json(directory)["model_type"]
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
            "no-model", f"{directory / 'config.json'} is not a valid {kind} config: {reason}.", "Fetch the model again."
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


def is_tied(config: Any) -> bool:
    """Whether the head of a model multiplies by the token embedding."""
    return not FAMILIES[config.model_type].is_encoder and bool(config.tie_word_embeddings)


def head_dim(config: Any) -> int:
    """Numbers of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

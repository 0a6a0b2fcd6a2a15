"""The config.json of a model of the exact profile, read without transformers.

Reading it with transformers loads about 900 modules, which takes a node longer than loading torch. Field names,
defaults and old spellings are those of transformers 5; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from efedllm.errors import ModelError
from efedllm.models.exact import EXACT_FAMILIES
from efedllm.models.families import read_json

Count = Annotated[int, Field(gt=0, lt=1 << 31)]

_COMMON = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_QWEN = _COMMON | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": _COMMON | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
}
_ROPE_NUMBERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What `engine.exact.rope` reads of each kind of scaling, beside the base."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())

    model_type: str


class GatedConfig(_Config):
    """Llama, Mistral, Qwen2 and Qwen3: RMS norms, rotary embeddings, gated MLPs."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    hidden_act: str = "silu"
    max_position_embeddings: Count
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: dict[str, Any]
    sliding_window: Count | None = 4096
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        kind = raw["model_type"]
        full = _DEFAULTS[kind] | raw
        if full.get("num_key_value_heads") is None:
            full["num_key_value_heads"] = full["num_attention_heads"]
        if full.get("head_dim") is None:
            full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
        if not kind.startswith("qwen"):
            full["layer_types"] = None
        elif not full.get("use_sliding_window"):
            full["sliding_window"] = None
        rope = dict(full.get("rope_scaling") or full.get("rope_parameters") or {})
        rope.setdefault("rope_theta", full.get("rope_theta", 10_000.0))
        rope.setdefault("rope_type", rope.get("type", "default"))
        if full.get("partial_rotary_factor") is not None:
            rope.setdefault("partial_rotary_factor", full["partial_rotary_factor"])
        if rope["rope_type"] == "llama3":
            rope.setdefault("original_max_position_embeddings", full["max_position_embeddings"])
        return full | {"rope_parameters": rope}

    @model_validator(mode="after")
    def _check(self) -> Self:
        rope = self.rope_parameters
        numbers = ["rope_theta", *_ROPE_NUMBERS.get(rope["rope_type"], ())]
        if rope.get("partial_rotary_factor") is not None:
            numbers.append("partial_rotary_factor")
        for name in numbers:
            number = rope.get(name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
                raise ValueError(f"{name} of the rotary embeddings is not a positive number")
        if rope["rope_type"] == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
            raise ValueError("low_freq_factor must be less than high_freq_factor")
        if self.head_dim % 2 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("head_dim must be even, and num_attention_heads a multiple of num_key_value_heads")
        if self.model_type == "llama" and self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name every layer")
        return self


def _either(default: int, *names: str) -> Any:
    """A field that a config may name in several ways."""
    return Field(default, validation_alias=AliasChoices(*names))


class Gpt2Config(_Config):
    """GPT-2: layer norms, learned positions, GELU."""

    vocab_size: Count = 50257
    hidden_size: Count = _either(768, "n_embd", "hidden_size")
    num_hidden_layers: Count = _either(12, "n_layer", "num_hidden_layers")
    num_attention_heads: Count = _either(12, "n_head", "num_attention_heads")
    max_position_embeddings: Count = Field(
        1024, validation_alias=AliasChoices("n_positions", "max_position_embeddings")
    )
    n_inner: Count | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    add_cross_attention: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("n_embd must be a multiple of n_head")
        return self


ExactConfig = GatedConfig | Gpt2Config


def read_exact_config(directory: Path) -> ExactConfig:
    """The config in `directory`.

    Raises ModelError "no-model" without a readable config.json and "unsupported-model" for one that the exact profile
    does not run.
    """
    raw = read_json(directory)
    kind = raw["model_type"]
    if kind not in EXACT_FAMILIES:
        raise _unsupported(f"models of type {kind}")
    try:
        return (Gpt2Config if kind == "gpt2" else GatedConfig).model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "config.json"
        raise _unsupported(f"this {kind} model: {field}: {first['msg']}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise _unsupported(f"this {kind} model: config.json: {error}") from error


def _unsupported(what: str) -> ModelError:
    return ModelError(
        "unsupported-model",
        f"The exact profile does not run {what}.",
        f"Publish a {', '.join(EXACT_FAMILIES)} model with `efedllm model compress --profile exact`.",
    )

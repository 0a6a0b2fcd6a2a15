"""Which published models the exact profile runs. Needs no torch: the arithmetic itself is in `engine.exact`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from efedllm.errors import ModelError
from efedllm.models.manifest import LAYER_EMBED, TensorInfo
from efedllm.models.packing import PACKED_BITS

EXACT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
EXACT_ROPES = ("default", "linear", "llama3")
MAX_POSITIONS = 1 << 18
"""Longest sequence: 2^20 * 2^15 * 2^18 = 2^53 bounds the sums over positions of exact attention."""

MAX_HEAD_DIM = 1024
"""Numbers of a head: its tables of angles are made in decimals of 60 digits, one frequency after the other."""

_POSITIONS = "transformer.wpe.weight"
"""Only looked up, so of any dtype."""


def exact_allows(form: str, dtype: str) -> bool:
    """Whether a matrix of a layer or the head may be published as `form` and `dtype` in an exact model."""
    return dtype in PACKED_BITS if form == "packed" else dtype == "int8"


def exact_obstacle(config: Any, tensors: Iterable[TensorInfo]) -> str | None:
    """Why the exact profile cannot run a model, in words that follow "does not run"; None when it can.

    `config` is an ExactConfig or that of transformers, `tensors` the published ones.
    """
    kind = config.model_type
    if kind not in EXACT_FAMILIES:
        return f"models of type {kind}"
    obstacle = _gpt2_obstacle(config) if kind == "gpt2" else _llama_obstacle(config)
    if obstacle is not None:
        return obstacle
    if int(config.max_position_embeddings) > MAX_POSITIONS:
        return f"more than {MAX_POSITIONS} positions"
    for tensor in tensors:
        allowed = exact_allows(tensor.form, tensor.dtype) or tensor.cols == 1 or tensor.name == _POSITIONS
        if not allowed or (tensor.layer == LAYER_EMBED and tensor.form != "dense"):
            return f"{tensor.form} {tensor.dtype} matrices ({tensor.name})"
    return None


def check_supported(tensors: Iterable[TensorInfo], config: Any) -> None:
    """Raises ModelError "unsupported-model" for a model the exact profile has no arithmetic for."""
    obstacle = exact_obstacle(config, tensors)
    if obstacle is not None:
        raise ModelError(
            "unsupported-model",
            f"The exact profile does not run {obstacle}.",
            f"Publish a {', '.join(EXACT_FAMILIES)} model with `efedllm model compress --profile exact`.",
        )


def _llama_obstacle(config: Any) -> str | None:
    if config.hidden_act != "silu":
        return f"{config.hidden_act} activations"
    if not config.rms_norm_eps > 0:
        return "norms without epsilon"
    if int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) > MAX_HEAD_DIM:
        return f"heads of more than {MAX_HEAD_DIM} numbers"
    rope = config.rope_parameters
    whole = float(rope.get("partial_rotary_factor") or 1.0) == 1.0
    if rope.get("rope_type", "default") not in EXACT_ROPES or not whole:
        return f"{rope.get('rope_type', 'default')} rotary embeddings, whole or partial, of this kind"
    return None


def _gpt2_obstacle(config: Any) -> str | None:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"{config.activation_function} activations"
    if config.add_cross_attention:
        return "cross-attention"
    if not config.layer_norm_epsilon > 0:
        return "norms without epsilon"
    return None

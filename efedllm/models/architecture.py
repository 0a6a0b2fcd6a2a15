"""What the layers of a causal model consist of, from its config alone: loading the model code of transformers is slow.

Covers the families of `models.exact.EXACT_FAMILIES`; a test compares it with the modules of transformers. `config` is
an ExactConfig, or transformers' own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from efedllm.models.families import head_dim


class LinearShape(NamedTuple):
    """A linear map from `columns` to `rows` numbers, with or without a bias."""

    rows: int
    columns: int
    bias: bool


def layer_linears(config: Any) -> dict[str, LinearShape]:
    """The linear maps of every layer, by the name of their module within the layer."""
    hidden, dim = int(config.hidden_size), head_dim(config)
    queries = int(config.num_attention_heads) * dim
    if config.model_type == "gpt2":
        inner = int(config.n_inner or 4 * hidden)
        return {
            "attn.c_attn": LinearShape(3 * queries, hidden, True),
            "attn.c_proj": LinearShape(hidden, queries, True),
            "mlp.c_fc": LinearShape(inner, hidden, True),
            "mlp.c_proj": LinearShape(hidden, inner, True),
        }
    keys, inner = int(config.num_key_value_heads) * dim, int(config.intermediate_size)
    kind = config.model_type
    attention_bias = kind in ("llama", "qwen3") and bool(config.attention_bias)
    input_bias = attention_bias or kind == "qwen2"
    mlp_bias = kind == "llama" and bool(config.mlp_bias)
    return {
        "self_attn.q_proj": LinearShape(queries, hidden, input_bias),
        "self_attn.k_proj": LinearShape(keys, hidden, input_bias),
        "self_attn.v_proj": LinearShape(keys, hidden, input_bias),
        "self_attn.o_proj": LinearShape(hidden, queries, attention_bias),
        "mlp.gate_proj": LinearShape(inner, hidden, mlp_bias),
        "mlp.up_proj": LinearShape(inner, hidden, mlp_bias),
        "mlp.down_proj": LinearShape(hidden, inner, mlp_bias),
    }


def has_head_norms(config: Any) -> bool:
    """Whether the queries and keys of each head are normed: `self_attn.q_norm` and `self_attn.k_norm`."""
    return bool(config.model_type == "qwen3")


def sliding_window(config: Any, layer: int) -> int | None:
    """Positions that attention of layer `layer` reaches back, its own included; None for all."""
    kind, slides = config.model_type, True
    if kind in ("qwen2", "qwen3"):
        types = config.layer_types
        slides = layer >= config.max_window_layers if types is None else types[layer] == "sliding_attention"
    window = None if kind in ("llama", "gpt2") else config.sliding_window
    return int(window) if slides and window is not None else None

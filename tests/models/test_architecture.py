"""What the exact engine takes from a config is what the modules of transformers are."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from torch import nn

from efedllm.models.architecture import LinearShape, has_head_norms, layer_linears, sliding_window
from efedllm.models.exact import EXACT_FAMILIES
from efedllm.models.families import head_dim, is_tied
from efedllm.models.skeleton import build_skeleton, is_matrix, linear_shape
from tests.model_fixtures import family_config

FAMILY_CONFIGS = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gpt2")


def variants() -> list[Any]:
    """The tiny config of every family, and those with the options that change what a layer consists of."""
    common = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    return [
        *(family_config(name) for name in FAMILY_CONFIGS),
        transformers.LlamaConfig(**common, intermediate_size=40, attention_bias=True, mlp_bias=True, head_dim=24),
        transformers.MistralConfig(**common, intermediate_size=40, sliding_window=None, head_dim=24),
        transformers.MistralConfig(**common, intermediate_size=40, attention_bias=True, mlp_bias=True),
        transformers.Qwen2Config(**common, intermediate_size=40, attention_bias=True, head_dim=24),
        transformers.Qwen3Config(**common, intermediate_size=40, attention_bias=True),
        transformers.Qwen3Config(
            **common, intermediate_size=40, use_sliding_window=True, sliding_window=9, max_window_layers=1
        ),
        transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, n_inner=56, vocab_size=64, n_positions=32),
    ]


@pytest.mark.parametrize("config", variants(), ids=lambda config: str(config.model_type))
def test_a_config_says_what_the_modules_are(config: Any) -> None:
    skeleton = build_skeleton(config, "eager")
    for index in range(skeleton.layers):
        layer = skeleton.layer(index)
        found = {
            path: LinearShape(*linear_shape(module), getattr(module, "bias", None) is not None)
            for path, module in layer.named_modules()
            if is_matrix(module)
        }
        assert layer_linears(config) == found
        norms = [path for path, _ in layer.named_parameters() if path.endswith(("q_norm.weight", "k_norm.weight"))]
        assert len(norms) == 2 * has_head_norms(config)
        attention = getattr(layer, "self_attn", None)
        # Mistral slides in every layer, and its modules do not say so.
        window = config.sliding_window if config.model_type == "mistral" else getattr(attention, "sliding_window", None)
        assert sliding_window(config, index) == window
        if attention is not None:
            assert attention.head_dim == head_dim(config)
    head = skeleton.model.get_submodule(skeleton.family.head)
    assert isinstance(head, nn.Linear)
    assert tuple(head.weight.shape) == (config.vocab_size, config.hidden_size)
    assert head._parameters["bias"] is None
    assert is_tied(config) == skeleton.tied
    norm = skeleton.model.get_submodule(skeleton.family.norm)
    assert isinstance(norm, nn.LayerNorm) == (config.model_type == "gpt2")


def test_every_exact_family_is_compared() -> None:
    assert {config.model_type for config in variants()} == set(EXACT_FAMILIES)

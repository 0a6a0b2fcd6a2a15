"""The exact profile reads a config.json as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from efedllm.errors import ModelError
from efedllm.models.architecture import layer_linears, sliding_window
from efedllm.models.exact import exact_obstacle
from efedllm.models.exact_config import read_exact_config
from efedllm.models.families import head_dim, is_tied, read_config
from tests.models.test_architecture import FAMILY_CONFIGS, variants

COMMON = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings")
GATED = ("hidden_act", "rms_norm_eps", "rope_parameters", "intermediate_size")
GPT2 = ("activation_function", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

SPELLINGS: tuple[dict[str, Any], ...] = (
    {"model_type": "llama"},
    {"model_type": "mistral"},
    {"model_type": "qwen2"},
    {"model_type": "qwen3"},
    {"model_type": "gpt2"},
    {"model_type": "gpt2", "hidden_size": 96, "n_layer": 3, "n_head": 4, "n_positions": 33},
    {"model_type": "gpt2", "n_embd": 96, "num_hidden_layers": 3, "add_cross_attention": False, "n_ctx": 5},
    {"model_type": "llama", "rope_theta": 500000.0},
    {"model_type": "llama", "rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"model_type": "llama", "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 512}},
    {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 7e5}, "max_position_embeddings": 4096},
    {"model_type": "llama", "rope_scaling": None, "partial_rotary_factor": 0.5},
    {"model_type": "llama", "num_key_value_heads": None, "head_dim": None, "hidden_size": 256},
    {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 64, "mlp_bias": True, "attention_bias": True},
    {"model_type": "mistral", "sliding_window": None, "use_sliding_window": False},
    {"model_type": "mistral", "num_key_value_heads": 4, "tie_word_embeddings": True},
    {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 30},
    {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64},
    {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)


def compare(directory: Path) -> None:
    """Everything that the exact engine takes from a config."""
    ours, theirs = read_exact_config(directory), read_config(directory)
    own = GPT2 if theirs.model_type == "gpt2" else GATED
    for name in (*COMMON, *own):
        assert getattr(ours, name) == getattr(theirs, name), name
    kv_heads = getattr(theirs, "num_key_value_heads", None)
    assert getattr(ours, "num_key_value_heads", None) == kv_heads
    assert layer_linears(ours) == layer_linears(theirs)
    assert (head_dim(ours), is_tied(ours)) == (head_dim(theirs), is_tied(theirs))
    assert exact_obstacle(ours, ()) == exact_obstacle(theirs, ())
    for layer in range(theirs.num_hidden_layers):
        assert sliding_window(ours, layer) == sliding_window(theirs, layer)


@pytest.mark.parametrize("raw", SPELLINGS, ids=lambda raw: str(raw["model_type"]))
def test_old_and_partial_files_mean_the_same(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    compare(tmp_path)


@pytest.mark.parametrize("config", variants(), ids=lambda config: str(config.model_type))
def test_what_transformers_writes_means_the_same(config: transformers.PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    compare(tmp_path)


def test_the_bundled_model_means_the_same(bundled_model: Path) -> None:
    assert len(FAMILY_CONFIGS) > 1
    compare(bundled_model)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "32"},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"head_dim": 7},
        {"layer_types": ["full_attention"]},
        {"rms_norm_eps": [1]},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"type": ["linear"]}},
        {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
        {"rope_scaling": {"full_attention": {"rope_theta": 1e4}, "rope_type": "linear"}},
        {"rope_theta": -1.0},
        {"rope_theta": "10000"},
        {"partial_rotary_factor": "half"},
    ],
    ids=json.dumps,
)
def test_a_bad_config_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    raw = {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    read_exact_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ModelError) as caught:
        read_exact_config(tmp_path)
    assert caught.value.code == "unsupported-model"


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"model_type": "llama"'])
def test_a_file_that_is_no_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        read_exact_config(tmp_path)
    assert caught.value.code == "no-model"


def test_other_families_are_refused(tmp_path: Path) -> None:
    for raw in ({"model_type": "bert"}, {"model_type": ["llama"]}):
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(ModelError) as caught:
            read_exact_config(tmp_path)
        assert caught.value.code == "unsupported-model"

"""Models to test with: tiny random ones of every family, published in any form, and the bundled one.

A test folder imports these fixtures in its conftest.py. torch loads on first use.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efedllm.checkout import project_root

ROOT = project_root()
LAYERS = 8
VOCAB = 96
CONTEXT = 64


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The checkpoint that ships with the project."""
    return ROOT / "models" / "pylib-7m"


def family_config(family: str) -> Any:
    """The config of the tiny model of a family."""
    import transformers

    common = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        # Large enough that layers matter and that logits are far from each other.
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    match family:
        case "llama":
            return transformers.LlamaConfig(**common)
        case "llama-tied":
            return transformers.LlamaConfig(**common | {"tie_word_embeddings": True, "attention_bias": True})
        case "qwen2":
            return transformers.Qwen2Config(**common, use_sliding_window=True, sliding_window=7, max_window_layers=3)
        case "qwen3":
            return transformers.Qwen3Config(**common, head_dim=16)
        case "mistral":
            return transformers.MistralConfig(**common, sliding_window=5)
        case "bert":
            return transformers.BertConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                initializer_range=0.15,
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCAB,
                n_positions=CONTEXT,
                n_embd=32,
                n_layer=LAYERS,
                n_head=4,
                initializer_range=0.15,
                scale_attn_by_inverse_layer_idx=True,
                bos_token_id=None,
                eos_token_id=None,
            )
    raise AssertionError(family)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a random float32 checkpoint of a family, made once: 8 layers, vocabulary 96, context 64."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        import torch
        from transformers import AutoModel, AutoModelForCausalLM

        if family not in made:
            torch.manual_seed(sum(map(ord, family)))
            kind = AutoModel if family == "bert" else AutoModelForCausalLM
            model = kind.from_config(family_config(family))
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    # Biases and norms start as constants, which would hide a bias that is dropped.
                    torch.nn.init.normal_(parameter, mean=0.0 if "bias" in name else 1.0, std=0.1)
            made[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def published(
    checkpoint: Callable[[str], Path], bundled_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Directory of the published form of a family ("bundled" for the bundled model), made once per set of options."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(family: str, keep: float = 1.0, quant: str = "none") -> Path:
        from efedllm.compression import CompressOptions, compress

        key = (family, keep, quant)
        if key not in made:
            source = bundled_model if family == "bundled" else checkpoint(family)
            made[key] = tmp_path_factory.mktemp(f"published-{family}")
            compress(CompressOptions(str(source), made[key], keep=keep, quant=quant))  # type: ignore[arg-type]
        return made[key]

    return make


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and `model.json`: what a network without wishes serves, compressed once per test run."""
    from efedllm_deploy.bundled import ModelChoice, ensure_model
    from tests.live_network import run_in_thread

    base = tmp_path_factory.getbasetemp()
    # Workers of one run share what lies above their own folders.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "default-model"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_in_thread(ensure_model(ModelChoice(), folder / "model", folder / "log"))
    return folder


def use_model(home: Path, folder: Path) -> None:
    """Gives a new home of a network the model of `default_model`, as if it had been compressed there."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "model").symlink_to(folder / "model")
    (home / "model.json").write_bytes((folder / "model.json").read_bytes())


def with_words(source: Path, target: Path) -> Path:
    """Copy a random checkpoint to `target` with a tokenizer of one word per token; a calibration text beside it."""
    import shutil

    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers

    shutil.copytree(source, target)
    words = [f"w{i}" for i in range(VOCAB)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(target / "tokenizer.json"))
    text = target / "calibration.txt"
    text.write_text(" ".join(words[i] for i in np.random.default_rng(0).integers(0, VOCAB, 2000)))
    return text

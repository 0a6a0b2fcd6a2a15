"""Compressing takes the memory of the largest layer, not of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from efedllm.compression.report import REPORT_NAME, Report
from efedllm.compression.states import States
from tests.model_fixtures import CONTEXT, VOCAB, with_words

SHALLOW, DEEP = 3, 15
# Freed arrays go back at once, so that the peak is what was in use and not how the heap was cut up.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from efedllm.compression import CompressOptions, compress
source, out, given = sys.argv[1:]
compress(CompressOptions(source, Path(out), calibration_tokens=128, **json.loads(given)))
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A checkpoint of so many layers of 3 MB each in float32."""

    def make(layers: int) -> Path:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        plain = tmp_path_factory.mktemp("deep") / "plain"
        # Several files, as large models have.
        LlamaForCausalLM(config).float().save_pretrained(plain, max_shard_size="20MB")
        return with_words(plain, plain.parent / "worded").parent

    return make


def test_the_peak_does_not_grow_with_the_layers(deep: Callable[[int], Path], tmp_path: Path) -> None:
    """kfac measures all layers backwards, keeps what it found, and makes them forwards."""
    given = {"method": "kfac", "budget": 0.3, "quant": "int8"}
    peaks = {}
    for layers in (SHALLOW, DEEP):
        source, out = deep(layers), tmp_path / str(layers)
        program = [sys.executable, "-c", PROGRAM, str(source), str(out), json.dumps(given)]
        subprocess.run(program, check=True, capture_output=True, env=os.environ | ALLOCATOR)
        peaks[layers] = Report.model_validate_json((out / REPORT_NAME).read_text()).peak_memory
        weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    # Loaded whole, the deep model would need twelve layers more, 38 MB. What the libraries take differs by up to 27 MB.
    assert weights > 45e6
    assert peaks[DEEP] < peaks[SHALLOW] + 32e6


@pytest.mark.parametrize("in_file", [False, True])
def test_states_come_back_as_they_were_written(in_file: bool, tmp_path: Path) -> None:
    states = States((5, 3, 4), 2, tmp_path / "states" if in_file else None)
    values = torch.arange(60, dtype=torch.float32).view(5, 3, 4)
    states.write(1, 0, values[:2])
    states.write(1, 2, values[2:])
    states.write(0, 0, -values)
    assert torch.equal(states.read(1, 0, 9), values)
    assert torch.equal(states.read(0, 1, 3), -values[1:3])
    states.close()
    assert not (tmp_path / "states").exists()

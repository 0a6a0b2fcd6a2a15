"""The encoder engine computes what transformers computes, whole, split, and beside other texts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertForMaskedLM

from efedllm.compression import CompressOptions, compress
from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.errors import ModelError
from efedllm.models.families import FAMILIES
from efedllm.models.manifest import ENCODERS
from tests.engine.engine_helpers import ids, run_one
from tests.model_fixtures import family_config, with_words

TEXT = ids(5, 23)


def reference(directory: Path, text: Int32) -> Float32:
    """Last hidden states of transformers, float32 [n, hidden]."""
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        states: Float32 = model(torch.from_numpy(text.astype(np.int64))[None]).last_hidden_state[0].numpy()
    return states


def encode(directory: Path, bounds: tuple[int, ...], text: Int32) -> Float32:
    states: Int32 | Float32 = text
    for lo, hi in pairwise(bounds):
        engine = EncoderEngine.load(directory, lo, hi)
        states = run_one(engine, engine.new_sequence(), states)
    return states.astype(np.float32, copy=False)


@pytest.mark.parametrize("bounds", [(0, 8), (0, 3, 8), (0, 1, 2, 3, 4, 5, 6, 7, 8)])
def test_any_split_gives_the_states_of_transformers_to_the_bit(
    bounds: tuple[int, ...], checkpoint: Callable[[str], Path], published: Callable[..., Path]
) -> None:
    np.testing.assert_array_equal(encode(published("bert"), bounds, TEXT), reference(checkpoint("bert"), TEXT))


def test_texts_batched_together_do_not_see_each_other(published: Callable[..., Path]) -> None:
    engine = EncoderEngine.load(published("bert"), 0, 5)
    texts = [ids(20 + n, n) for n in (1, 9, 30, 64)]
    alone = [run_one(engine, engine.new_sequence(), text) for text in texts]
    together = engine.step([StepItem(engine.new_sequence(), text) for text in texts])
    for got, want in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_an_encoder_takes_each_text_whole_and_has_no_head(published: Callable[..., Path]) -> None:
    engine = EncoderEngine.load(published("bert"), 0, 8)
    sequence = engine.new_sequence()
    run_one(engine, sequence, TEXT)
    assert sequence.length == len(TEXT)
    with pytest.raises(ModelError) as refused:
        run_one(engine, sequence, TEXT)
    assert refused.value.code == "bad-input"
    assert engine.whole_texts
    assert not engine.has_head
    with pytest.raises(ModelError) as headless:
        engine.logits(np.zeros((1, engine.hidden), np.float32))
    assert headless.value.code == "no-head"
    sequence.truncate(0)
    np.testing.assert_array_equal(run_one(engine, sequence, TEXT), encode(published("bert"), (0, 8), TEXT))
    with pytest.raises(ModelError) as partly:
        sequence.truncate(3)
    assert partly.value.code == "bad-position"


def test_clients_know_the_same_families_as_encoders() -> None:
    assert {kind for kind, family in FAMILIES.items() if family.is_encoder} == ENCODERS


def test_a_checkpoint_with_a_head_on_top_gives_the_same_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    BertForMaskedLM(family_config("bert")).save_pretrained(tmp_path / "masked")
    out = tmp_path / "out"
    compress(CompressOptions(str(tmp_path / "masked"), out))
    np.testing.assert_array_equal(encode(out, (0, 8), TEXT), reference(tmp_path / "masked", TEXT))


@pytest.mark.parametrize("method", ["int8", "whiten", "lowrank+int4", "auto"])
def test_every_method_compresses_an_encoder(method: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "words"
    with_words(checkpoint("bert"), source)
    out = tmp_path / "out"
    budget = {"int8": 0.7, "whiten": 0.9, "lowrank+int4": 0.6, "auto": 0.6}[method]
    options = CompressOptions(str(source), out, method=method, budget=budget, quant="int8")  # type: ignore[arg-type]
    manifest = compress(options)
    stored, dense = manifest.matrix_bytes()
    assert stored <= budget * dense
    got, want = encode(out, (0, 8), TEXT), reference(source, TEXT)
    # Random weights are incompressible: enough that the forms mean the matrices they stand for.
    cosine = float((got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want))
    assert cosine > (0.9 if method == "whiten" else 0.99)

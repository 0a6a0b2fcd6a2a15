"""The engine computes what transformers computes, however the layers are split and the batch is mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from efedllm.engine.protocol import Float32, StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.models.manifest import Manifest
from efedllm.models.tensorfile import TensorFile
from tests.engine.engine_helpers import FAMILIES, Pipeline, ids, load_split, run_one

ATOL = 1e-5
PROMPT = ids(1, 13)
NEW = 12


def reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def reference_logits(model: Any, tokens: np.ndarray[Any, Any]) -> Float32:
    with torch.no_grad():
        logits: Float32 = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    return logits


def reference_greedy(model: Any, prompt: np.ndarray[Any, Any], count: int) -> list[int]:
    tokens = [int(t) for t in prompt]
    for _ in range(count):
        tokens.append(int(reference_logits(model, np.array(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_uncompressed_model_gives_the_logits_and_tokens_of_transformers(
    family: str, checkpoint: Callable[[str], Path], published: Callable[..., Path]
) -> None:
    model = reference(checkpoint(family))
    engines = load_split(published(family), 1)
    long = ids(2, 40)
    np.testing.assert_allclose(Pipeline(engines).feed(long), reference_logits(model, long), rtol=0, atol=ATOL)
    assert Pipeline(engines).greedy(PROMPT, NEW) == reference_greedy(model, PROMPT, NEW)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_in_pieces_gives_the_logits_of_one_pass(family: str, published: Callable[..., Path]) -> None:
    engines = load_split(published(family), 2)
    tokens = ids(3, 31)
    whole = Pipeline(engines).feed(tokens)
    pieces = Pipeline(engines)
    parts = [pieces.feed(tokens[a:b]) for a, b in [(0, 4), (4, 5), (5, 6), (6, 20), (20, 21), (21, 31)]]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=ATOL)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("keep", "quant"), [(0.5, "none"), (0.5, "int8"), (1.0, "int8")])
def test_factors_and_int8_rows_mean_the_matrices_they_stand_for(
    family: str, keep: float, quant: str, checkpoint: Callable[[str], Path], published: Callable[..., Path]
) -> None:
    """transformers, given the product of the published factors as its dense weights, agrees with the engine."""
    directory = published(family, keep, quant)
    model = reference(checkpoint(family))
    manifest = Manifest.load(directory)
    forms = {t.form for t in manifest.tensors}
    assert forms == ({"dense", "lowrank"} if keep < 1 else {"dense"})
    with torch.no_grad():
        for tensor in manifest.tensors:
            with TensorFile(directory / tensor.file) as file:
                arrays = [torch.from_numpy(_array(file, name)) for name in tensor.parts]
            half = len(arrays) // 2
            if tensor.dtype == "int8":
                arrays = [q.double() * s[:, None].double() for q, s in zip(arrays[:half], arrays[half:], strict=True)]
            value = arrays[0].double() @ arrays[1].double() if tensor.form == "lowrank" else arrays[0]
            module = model.get_submodule(tensor.name.rpartition(".")[0])
            model.get_parameter(tensor.name).copy_(value.T if isinstance(module, Conv1D) and value.ndim == 2 else value)
    got = Pipeline(load_split(directory, 1)).feed(PROMPT)
    want = reference_logits(model, PROMPT)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def _array(file: TensorFile, name: str) -> np.ndarray[Any, Any]:
    slot = file.slot(name)
    kind = {"float32": np.float32, "int8": np.int8}[slot.dtype]
    return np.frombuffer(bytes(file.view(name)), dtype=kind).reshape(slot.shape).copy()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_split_gives_the_logits_and_tokens_of_one_engine(family: str, published: Callable[..., Path]) -> None:
    directory = published(family, 0.5, "int8")
    one = load_split(directory, 1)
    want, tokens = Pipeline(one).feed(PROMPT), Pipeline(one).greedy(PROMPT, NEW)
    for parts in (2, 4, 8):
        engines = load_split(directory, parts)
        assert [e.has_embedding for e in engines] == [True] + [False] * (parts - 1)
        assert [e.has_head for e in engines] == [False] * (parts - 1) + [True]
        np.testing.assert_allclose(Pipeline(engines).feed(PROMPT), want, rtol=0, atol=ATOL)
        assert Pipeline(engines).greedy(PROMPT, NEW) == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_gives_each_sequence_what_it_gets_alone(family: str, published: Callable[..., Path]) -> None:
    engine = ShardEngine.load(published(family), 0, 5)
    before, now = [0, 9, 17, 30, 3], [11, 1, 1, 6, 1]
    inputs = [ids(10 + i, a + b) for i, (a, b) in enumerate(zip(before, now, strict=True))]
    alone, mixed = [], []
    for tokens, start in zip(inputs, before, strict=True):
        single, shared = engine.new_sequence(), engine.new_sequence()
        for sequence in (single, shared):
            if start:
                run_one(engine, sequence, tokens[:start])
        alone.append(run_one(engine, single, tokens[start:]))
        mixed.append(StepItem(shared, tokens[start:]))
    together = engine.step(mixed)
    assert [item.sequence.length for item in mixed] == [a + b for a, b in zip(before, now, strict=True)]
    for got, want in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embed_gives_what_layer_zero_starts_from(
    family: str, checkpoint: Callable[[str], Path], published: Callable[..., Path]
) -> None:
    engine = ShardEngine.load(published(family), 0, 1)
    model = reference(checkpoint(family))
    with torch.no_grad():
        states = model(torch.from_numpy(PROMPT.astype(np.int64))[None], output_hidden_states=True).hidden_states[0][0]
    np.testing.assert_array_equal(engine.embed(PROMPT), states.numpy())
    shifted = engine.embed(PROMPT, np.arange(13, dtype=np.int32) + 5)
    assert np.array_equal(shifted, states.numpy()) == (family == "llama")

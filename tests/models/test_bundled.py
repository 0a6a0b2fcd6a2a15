"""The bundled model: what its card says of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.models.manifest import Manifest

WINDOW = 512
# Every fourth window, so that the sample runs through all of the text.
STRIDE = 4 * WINDOW


def perplexity(engine: ShardEngine, directory: Path) -> float:
    """Over a quarter of the windows of held-out.txt, each from an empty context."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = np.array(tokenizer.encode((directory / "held-out.txt").read_text()).ids, dtype=np.int32)
    nats = 0.0
    starts = range(0, len(ids) - WINDOW, STRIDE)
    for start in starts:
        window, following = ids[start : start + WINDOW], ids[start + 1 : start + WINDOW + 1]
        logits = engine.logits(engine.step([StepItem(engine.new_sequence(), window)])[0]).astype(np.float64)
        peak = logits.max(axis=1)
        total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        nats += float((total - logits[np.arange(WINDOW), following]).sum())
    return math.exp(nats / (WINDOW * len(starts)))


def load(directory: Path) -> ShardEngine:
    return ShardEngine.load(directory, 0, 8, verify_root=Manifest.load(directory).root)


@pytest.fixture(scope="module")
def plain(published: Callable[..., Path], bundled_model: Path) -> float:
    return perplexity(load(published("bundled")), bundled_model)


def test_it_predicts_text_it_has_not_seen(plain: float) -> None:
    # The card says 12.4 over the whole text.
    assert plain == pytest.approx(12.4, rel=0.1)


def test_int8_halves_its_bytes_and_keeps_its_perplexity(
    plain: float, published: Callable[..., Path], bundled_model: Path
) -> None:
    directory = published("bundled", 1.0, "int8")
    assert perplexity(load(directory), bundled_model) == pytest.approx(plain, rel=0.004)
    sizes = [sum(t.nbytes for t in Manifest.load(d).tensors) for d in (directory, published("bundled"))]
    assert sizes[0] < 0.51 * sizes[1]


def test_it_completes_python(published: Callable[..., Path]) -> None:
    directory = published("bundled", 1.0, "int8")
    engine = load(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode("import os\nimport sys\n\ndef main():\n    for name in os.listdir").ids
    assert ids[0] == 0
    sequence = engine.new_sequence()
    inputs = np.array(ids, dtype=np.int32)
    for _ in range(2):
        logits = engine.logits(engine.step([StepItem(sequence, inputs)])[0][-1:])
        ids.append(int(logits[0].argmax()))
        inputs = np.array(ids[-1:], dtype=np.int32)
    assert tokenizer.decode(ids).startswith("import os\nimport sys\n\ndef main():\n    for name in os.listdir(")

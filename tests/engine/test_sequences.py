"""Sequences: replay, going back, limits, and steps that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from tests.engine.engine_helpers import ids, run_one

ATOL = 1e-5


@pytest.fixture(scope="module")
def first(published: Callable[..., Path]) -> ShardEngine:
    return ShardEngine.load(published("mistral"), 0, 4)


@pytest.fixture(scope="module")
def last(published: Callable[..., Path]) -> ShardEngine:
    return ShardEngine.load(published("mistral"), 4, 8)


def test_an_engine_is_an_executor(first: ShardEngine) -> None:
    executor: Executor = first
    assert (executor.lo, executor.hi, executor.layers, executor.hidden, executor.vocab) == (0, 4, 8, 32, 96)
    assert executor.max_positions == 64
    assert executor.weight_bytes > 0


def test_one_prefill_of_the_kept_inputs_rebuilds_a_sequence(last: ShardEngine) -> None:
    """What a replacement node does: it continues exactly where the lost one was."""
    states = np.random.default_rng(5).normal(size=(20, 32)).astype(np.float32)
    original = last.new_sequence()
    run_one(last, original, states[:9])
    for i in range(9, 19):
        run_one(last, original, states[i : i + 1])
    want = run_one(last, original, states[19:])
    replayed = last.new_sequence()
    run_one(last, replayed, states[:19])
    np.testing.assert_allclose(run_one(last, replayed, states[19:]), want, rtol=0, atol=ATOL)
    assert replayed.length == original.length == 20


def test_going_back_forgets_everything_after(first: ShardEngine) -> None:
    tokens = ids(7, 30)
    sequence = first.new_sequence()
    whole = run_one(first, sequence, tokens)
    sequence.truncate(12)
    assert sequence.length == 12
    run_one(first, sequence, ids(8, 5))
    sequence.truncate(12)
    np.testing.assert_allclose(run_one(first, sequence, tokens[12:]), whole[12:], rtol=0, atol=ATOL)
    sequence.truncate(0)
    np.testing.assert_allclose(run_one(first, sequence, tokens), whole, rtol=0, atol=ATOL)


@pytest.mark.parametrize("length", [-1, 5])
def test_a_sequence_cannot_go_back_to_where_it_never_was(first: ShardEngine, length: int) -> None:
    sequence = first.new_sequence()
    run_one(first, sequence, ids(1, 4))
    with pytest.raises(ModelError, match="Cannot go back") as caught:
        sequence.truncate(length)
    assert caught.value.code == "bad-position"
    assert sequence.length == 4


def test_the_cache_grows_with_the_sequence(first: ShardEngine) -> None:
    sequence = first.new_sequence()
    assert sequence.nbytes == 0
    run_one(first, sequence, ids(1, 2))
    held = sequence.nbytes
    # 2 of: 4 layers, 2 key/value heads of 8 floats, one block of 64 positions.
    assert held == 2 * 4 * 2 * 8 * 4 * 64
    run_one(first, sequence, ids(1, 62))
    assert sequence.nbytes == held


def test_a_sequence_ends_at_the_models_context(first: ShardEngine) -> None:
    sequence = first.new_sequence()
    run_one(first, sequence, ids(1, 60))
    with pytest.raises(ModelError, match="65 positions; this model has 64") as caught:
        run_one(first, sequence, ids(1, 5))
    assert caught.value.code == "context-exceeded"
    assert sequence.length == 60
    run_one(first, sequence, ids(1, 4))
    assert sequence.length == 64


@pytest.mark.parametrize(
    "inputs",
    [
        np.array([1, 96], dtype=np.int32),
        np.array([-1], dtype=np.int32),
        np.array([], dtype=np.int32),
        np.array([[1]], dtype=np.int32),
        np.ones((2, 32), dtype=np.float32),
    ],
)
def test_bad_token_ids_are_refused_and_change_nothing(first: ShardEngine, inputs: np.ndarray) -> None:
    good, bad = first.new_sequence(), first.new_sequence()
    with pytest.raises(ModelError) as caught:
        first.step([StepItem(good, ids(1, 3)), StepItem(bad, inputs)])
    assert caught.value.code == "bad-input"
    assert (good.length, bad.length) == (0, 0)


@pytest.mark.parametrize(
    "inputs",
    [np.ones((2, 31), dtype=np.float32), np.ones((0, 32), dtype=np.float32), np.array([1], dtype=np.int32)],
)
def test_bad_states_are_refused(last: ShardEngine, inputs: np.ndarray) -> None:
    with pytest.raises(ModelError) as caught:
        run_one(last, last.new_sequence(), inputs)
    assert caught.value.code == "bad-input"
    with pytest.raises(ModelError):
        last.logits(inputs)


def test_a_sequence_takes_part_once_in_a_batch(first: ShardEngine) -> None:
    sequence = first.new_sequence()
    with pytest.raises(ModelError, match="once per batch"):
        first.step([StepItem(sequence, ids(1, 2)), StepItem(sequence, ids(1, 2))])


def test_an_empty_batch_is_no_work(first: ShardEngine) -> None:
    assert first.step([]) == []


def test_a_step_that_fails_half_way_leaves_the_sequences_as_they_were(
    published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ShardEngine.load(published("llama"), 0, 3)
    sequence, tokens = engine.new_sequence(), ids(3, 12)
    run_one(engine, sequence, tokens[:8])
    run = engine._run

    def fail(*arguments: object) -> object:
        run(*arguments)  # type: ignore[arg-type]
        raise MemoryError

    monkeypatch.setattr(engine, "_run", fail)
    with pytest.raises(MemoryError):
        run_one(engine, sequence, ids(9, 4))
    monkeypatch.undo()
    assert sequence.length == 8
    fresh = engine.new_sequence()
    want = run_one(engine, fresh, tokens)[8:]
    np.testing.assert_allclose(run_one(engine, sequence, tokens[8:]), want, rtol=0, atol=ATOL)


def test_only_the_ends_have_embedding_and_head(first: ShardEngine, last: ShardEngine) -> None:
    with pytest.raises(ModelError) as no_head:
        first.logits(np.ones((1, 32), dtype=np.float32))
    with pytest.raises(ModelError) as no_embedding:
        last.embed(ids(1, 1))
    assert (no_head.value.code, no_embedding.value.code) == ("no-head", "no-embedding")

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm_bench.memory import counted, traffic
from efedllm_bench.memory.counted import Slow
from efedllm_bench.memory.traffic import BERT_BASE, LLAMA3_8B, LLAMA_7B, SCOPES, Moved

sizes = st.integers(1, 40)
tile = st.integers(1, 17)


def matrix(rows: int, cols: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, cols))


def check(slow: Slow, got: Any, want: Any, moved: Moved) -> None:
    np.testing.assert_allclose(got, want, atol=1e-9)
    assert slow.moved == moved


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, tile)
def test_products_count_what_the_formulas_say(m: int, k: int, n: int, tile: int) -> None:
    a, b = matrix(m, k, 1), matrix(k, n, 2)
    slow = Slow()
    check(slow, counted.tiled(slow, a, b, tile), a @ b, traffic.tiled(m, k, n, tile))
    slow = Slow()
    check(slow, counted.naive(slow, a, b), a @ b, traffic.naive(m, k, n))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 20), tile)
def test_factors_count_their_middle_unless_fused(m: int, k: int, n: int, rank: int, tile: int) -> None:
    a, v, s, u = matrix(m, k, 1), matrix(k, rank, 2), matrix(1, rank, 3), matrix(rank, n, 4)
    want = (a @ v * s) @ u
    slow = Slow()
    check(slow, counted.factored(slow, a, v, s, u, tile), want, traffic.factored(m, k, n, rank, tile))
    slow = Slow()
    check(slow, counted.fused(slow, a, v, s, u, tile), want, traffic.fused(m, k, n, rank, tile))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 16), tile)
def test_tiled_attention_keeps_the_scores_out_of_slow_memory(queries: int, keys: int, dim: int, tile: int) -> None:
    q, k, v = matrix(queries, dim, 1), matrix(keys, dim, 2), matrix(keys, dim, 3)
    scores = np.exp(q @ k.T)
    want = scores / scores.sum(1, keepdims=True) @ v
    slow = Slow()
    check(slow, counted.attention_naive(slow, q, k, v, tile), want, traffic.attention_naive(queries, keys, dim, tile))
    slow = Slow()
    check(slow, counted.attention_tiled(slow, q, k, v, tile), want, traffic.attention_tiled(queries, keys, dim, tile))


def test_a_part_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit"):
        Slow().write(np.zeros((3, 3)), slice(0, 3), slice(2, 4), np.zeros((3, 2)))


def test_known_counts() -> None:
    assert traffic.naive(128, 768, 768).reads == 150_994_944
    assert traffic.tiled(128, 768, 768, 16).reads == 9_437_184
    assert traffic.tiled(128, 768, 768, 32) == Moved(4_718_592, 98_304)


@pytest.mark.parametrize(
    ("shape", "definition", "rank", "saving"),
    [
        ((768, 768), "rank_dropped", 230, 0.4007),
        ((3072, 768), "rank_dropped", 230, 0.6256),
        ((2304, 768), "rank_dropped", 230, 0.6006),
        ((768, 768), "params_saved", 115, 0.7003),
        ((11008, 4096), "rank_dropped", 1228, 0.5886),
        ((11008, 4096), "params_saved", 895, 0.7002),
    ],
)
def test_ranks_and_savings_by_definition(shape: tuple[int, int], definition: Any, rank: int, saving: float) -> None:
    assert traffic.rank_of(*shape, definition) == rank
    dense = traffic.weight_bytes(*shape, "dense")
    assert 1 - traffic.weight_bytes(*shape, definition) / dense == pytest.approx(saving, abs=1e-4)


@pytest.mark.parametrize("shape", [BERT_BASE, LLAMA_7B, LLAMA3_8B])
def test_bytes_saved_takes_three_tenths_of_every_matrix(shape: traffic.DecoderShape) -> None:
    for rows, cols in shape.matrices:
        share = traffic.weight_bytes(rows, cols, "bytes_saved") / (2 * rows * cols)
        assert 0.295 < share <= 0.3


def test_the_middle_makes_factors_dearer_from_514_tokens_on() -> None:
    """Everything reused: one tile as large as the matrices."""

    def moved(tokens: int) -> tuple[int, int]:
        dense = traffic.tiled(tokens, 768, 768, 10_000)
        return traffic.factored(tokens, 768, 768, 230, 10_000).total, dense.total

    assert 513 < traffic.dearer_from(768, 768, 230) < 514
    assert moved(513)[0] < moved(513)[1]
    assert moved(514)[0] > moved(514)[1]


def grows(of: Callable[[str], float]) -> bool:
    values = [of(scope) for scope in SCOPES]
    return all(left >= right for left, right in pairwise(values))


def test_what_is_counted_beside_the_weights_lowers_the_saving() -> None:
    assert grows(lambda scope: traffic.saved(LLAMA_7B, "params_saved", 1, 2048, scope))
    assert (
        traffic.saved(LLAMA_7B, "params_saved", 1, 8192, "+kv")
        < 0.6
        < traffic.saved(LLAMA3_8B, "params_saved", 1, 8192, "+kv")
    )
    assert traffic.saved(LLAMA_7B, "kept", 1, 512, "weights") == pytest.approx(0.3, abs=0.001)
    # A text at once through BERT: 60 % at 70 % is met only below some 54 tokens.
    assert traffic.prefill_saved(BERT_BASE, "params_saved", 1) == pytest.approx(0.698, abs=0.001)
    assert traffic.prefill_saved(BERT_BASE, "params_saved", 512) < 0.2

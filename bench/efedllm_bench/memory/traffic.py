"""Numbers moved between slow and fast memory, by formula: textbook counts of tiled products, no measurement. Pure.

An element is one number; a count is of elements read from and written to slow memory. C = A B with A [m, k], B [k, n].
`counted` computes the same products while counting, and must find the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Definition = Literal["dense", "rank_dropped", "params_saved", "bytes_saved", "kept"]
DEFINITIONS: tuple[Definition, ...] = ("dense", "rank_dropped", "params_saved", "bytes_saved", "kept")
MEANING = {
    "rank_dropped": "70 % of the singular values dropped",
    "params_saved": "70 % of the stored parameters saved",
    "bytes_saved": "70 % of the bytes saved: 4 bits per weight and int8 factors",
    "kept": "70 % kept, the ratio of compressed to original size",
}
_RATIO = 0.7
_GROUP = 64


@dataclass(frozen=True)
class Moved:
    """Elements read from and written to slow memory."""

    reads: int
    writes: int

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.reads + other.reads, self.writes + other.writes)

    def __mul__(self, times: int) -> Moved:
        return Moved(self.reads * times, self.writes * times)

    @property
    def total(self) -> int:
        return self.reads + self.writes


def tiles(length: int, tile: int) -> int:
    """How many tiles cover `length`; the last one may be shorter."""
    return -(-length // tile)


def naive(m: int, k: int, n: int) -> Moved:
    """Every product of two numbers fetches both."""
    return Moved(2 * m * k * n, m * n)


def tiled(m: int, k: int, n: int, tile: int) -> Moved:
    """Square tiles: a tile of the result stays in fast memory while its row of A and its column of B pass by."""
    return Moved(m * k * tiles(n, tile) + k * n * tiles(m, tile), m * n)


def factored(m: int, k: int, n: int, rank: int, tile: int) -> Moved:
    """(A V) U with the middle [m, rank] in slow memory, and `rank` singular values read once with it."""
    return tiled(m, k, rank, tile) + tiled(m, rank, n, tile) + Moved(rank * tiles(m, tile), 0)


def fused(m: int, k: int, n: int, rank: int, tile: int) -> Moved:
    """(A V) U, `tile` rows at a time with their middle kept in fast memory: both factors pass once for each."""
    return Moved(m * k + tiles(m, tile) * rank * (k + n + 1), m * n)


def attention_naive(queries: int, keys: int, dim: int, tile: int) -> Moved:
    """One head, scores in slow memory: their product, a pass that makes them weights, the product with the values."""
    scores = Moved(queries * keys, queries * keys)
    return tiled(queries, dim, keys, tile) + scores + tiled(queries, keys, dim, tile)


def attention_tiled(queries: int, keys: int, dim: int, tile: int) -> Moved:
    """One head, scores never in slow memory: keys and values pass once for each tile of queries."""
    return Moved(queries * dim + 2 * tiles(queries, tile) * keys * dim, queries * dim)


# --- ranks and bytes of a matrix under each definition ---


def rank_of(rows: int, cols: int, definition: Definition) -> int:
    """Rank that a matrix [rows, cols] keeps; 0 for dense. A factored one stores rank * (rows + cols + 1) numbers."""
    if definition == "dense":
        return 0
    if definition == "rank_dropped":
        return int(round((1 - _RATIO) * min(rows, cols), 6))
    if definition == "bytes_saved":
        left = (1 - _RATIO) * 2 * rows * cols - _packed_base(rows, cols)
        return max(0, int(left / (rows + cols + 4)))
    kept = _RATIO if definition == "kept" else 1 - _RATIO
    return int(kept * rows * cols / (rows + cols + 1))


def _packed_base(rows: int, cols: int) -> float:
    """Bytes of 4 bits per weight with a multiplier per 64 columns and a float32 scale per row."""
    return rows * cols / 2 + rows * tiles(cols, _GROUP) + 4 * rows


def weight_bytes(rows: int, cols: int, definition: Definition) -> float:
    """Stored bytes: 16-bit numbers, but the packed form of "bytes_saved"."""
    rank = rank_of(rows, cols, definition)
    if definition == "dense":
        return 2 * rows * cols
    if definition == "bytes_saved":
        return _packed_base(rows, cols) + rank * (rows + cols + 4)
    return 2 * rank * (rows + cols + 1)


def dearer_from(rows: int, cols: int, rank: int) -> float:
    """Tokens from which a factored product moves more than the dense one, everything reused: the middle is written and
    read once for each token. At most 0 where the factors are larger than the matrix.
    """
    return (rows * cols - rank * (rows + cols + 1)) / (2 * rank)


# --- whole models ---


@dataclass(frozen=True)
class DecoderShape:
    """A decoder by its sizes; `mlp`: its feed-forward matrices as (out, in)."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: tuple[tuple[int, int], ...]
    vocab: int

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of every matrix of a layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return ((q, self.hidden), (kv, self.hidden), (kv, self.hidden), (self.hidden, q), *self.mlp)


BERT_BASE = DecoderShape("BERT-base", 12, 768, 12, 12, 64, ((3072, 768), (768, 3072)), 30522)
LLAMA_7B = DecoderShape("LLaMA-7B", 32, 4096, 32, 32, 128, ((11008, 4096), (11008, 4096), (4096, 11008)), 32000)
LLAMA3_8B = DecoderShape("Llama-3-8B", 32, 4096, 32, 8, 128, ((14336, 4096), (14336, 4096), (4096, 14336)), 128256)
SHAPES = (BERT_BASE, LLAMA_7B, LLAMA3_8B)


@dataclass(frozen=True)
class TokenBytes:
    """Bytes moved per generated token, 16-bit numbers, all operands fetched once per pass of a batch."""

    weights: float
    activations: float
    kv: float
    head: float

    def scope(self, name: str) -> float:
        """Of the parts that `name` counts: "weights", "+activations", "+kv", "+head"."""
        parts = [self.weights, self.activations, self.kv, self.head]
        return sum(parts[: SCOPES.index(name) + 1])


SCOPES = ("weights", "+activations", "+kv", "+head")


def token_bytes(
    shape: DecoderShape, definition: Definition, batch: int, context: int, int8_head: bool = False
) -> TokenBytes:
    """Decoding `batch` sequences of `context` positions each: every one brings a token and its own cache."""
    weights = sum(weight_bytes(rows, cols, definition) for rows, cols in shape.matrices) * shape.layers / batch
    moved = 0
    for rows, cols in shape.matrices:
        moved += rows + cols + 2 * rank_of(rows, cols, definition)
    kv_width = shape.kv_heads * shape.head_dim
    query = shape.heads * shape.head_dim
    activations = 2.0 * shape.layers * (moved + 2 * query)
    kv = 2.0 * shape.layers * 2 * kv_width * (context + 1)
    head = shape.vocab * shape.hidden * (1 if int8_head else 2) / batch + 2.0 * (shape.hidden + shape.vocab)
    return TokenBytes(weights, activations, kv, head)


def saved(
    shape: DecoderShape, definition: Definition, batch: int, context: int, scope: str, int8_head: bool = False
) -> float:
    """Share of the bytes per token that `definition` saves against dense 16-bit weights; negative when it costs."""
    dense = token_bytes(shape, "dense", batch, context).scope(scope)
    return 1 - token_bytes(shape, definition, batch, context, int8_head).scope(scope) / dense


def prefill_saved(shape: DecoderShape, definition: Definition, tokens: int) -> float:
    """Share of the elements of one layer saved when one text of `tokens` is computed at once, scores in slow memory."""

    def layer(which: Definition) -> int:
        total = 0
        for rows, cols in shape.matrices:
            rank = rank_of(rows, cols, which)
            stored = rank * (rows + cols + 1) if rank else rows * cols
            total += stored + tokens * (rows + cols + 2 * rank)
        heads = attention_naive(tokens, tokens, shape.head_dim, tokens) * shape.heads
        return total + heads.total

    return 1 - layer(definition) / layer("dense")

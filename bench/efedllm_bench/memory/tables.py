"""The predicted and counted traffic as tables for the JSON, the plots and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from efedllm_bench.memory import counted, traffic
from efedllm_bench.memory.counted import Slow
from efedllm_bench.memory.traffic import DEFINITIONS, MEANING, SCOPES, SHAPES, Moved

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (512, 2048, 8192)
TILES = (8, 16, 32, 64)
_CLAIM = 0.6


def predicted() -> dict[str, Any]:
    """Share of bytes per decoded token saved: model, context, definition, scope, then a list over BATCHES."""
    found: dict[str, Any] = {}
    for shape in SHAPES:
        found[shape.name] = {
            str(context): {
                definition: {
                    scope: [round(traffic.saved(shape, definition, batch, context, scope), 3) for batch in BATCHES]
                    for scope in SCOPES
                }
                for definition in DEFINITIONS[1:]
            }
            for context in contexts(shape)
        }
    return found


def contexts(shape: traffic.DecoderShape) -> tuple[int, ...]:
    """Contexts worth a figure: BERT reads at most 512 positions."""
    return CONTEXTS[:1] if shape is traffic.BERT_BASE else CONTEXTS


def prefill() -> dict[str, dict[str, list[float]]]:
    """Share of the elements of one layer saved for one text at once, by model and definition, for every batch size."""
    return {
        shape.name: {d: [round(traffic.prefill_saved(shape, d, n), 4) for n in BATCHES] for d in DEFINITIONS[1:]}
        for shape in SHAPES
    }


def verdicts() -> list[dict[str, Any]]:
    """For every reading of "60 % less bandwidth at 70 % compression": what is saved, and whether it is 60 %."""
    rows = []
    for definition in DEFINITIONS[1:]:
        for scope in SCOPES:
            for batch in (1, 16, 128):
                shares = {
                    f"{shape.name}, {context}": round(traffic.saved(shape, definition, batch, context, scope), 3)
                    for shape in SHAPES
                    for context in contexts(shape)
                }
                holds = [name for name, share in shares.items() if share >= _CLAIM]
                said = "yes" if len(holds) == len(shares) else "in part" if holds else "no"
                rows.append(
                    {
                        "reading": MEANING[definition],
                        "definition": definition,
                        "counted": scope,
                        "batch": batch,
                        "saved": shares,
                        "sixty_percent": said,
                        "holds_for": holds,
                    }
                )
    return rows


def combined() -> dict[str, Any]:
    """None, tiles, SVD and both for one matrix 768 x 768 at rank 230, in elements moved per token; and from how many
    tokens on SVD costs traffic.
    """
    rank = traffic.rank_of(768, 768, "rank_dropped")
    rows = []
    for n in (1, 8, 32, 128, 512, 1024):
        plain, tile = traffic.naive(n, 768, 768), traffic.tiled(n, 768, 768, 32)
        svd = traffic.naive(n, 768, rank) + traffic.naive(n, rank, 768)
        both, fused = traffic.factored(n, 768, 768, rank, 32), traffic.fused(n, 768, 768, rank, 32)
        whole, reused = traffic.tiled(n, 768, 768, 4096), traffic.factored(n, 768, 768, rank, 4096)
        rows.append(
            {
                "tokens": n,
                "naive": plain.total,
                "svd_naive": svd.total,
                "tiled_32": tile.total,
                "svd_tiled_32": both.total,
                "svd_fused_32": fused.total,
                "all_reused": whole.total,
                "svd_all_reused": reused.total,
                "svd_saves_naive": round(1 - svd.total / plain.total, 4),
                "svd_saves_tiled_32": round(1 - both.total / tile.total, 4),
                "svd_saves_all_reused": round(1 - reused.total / whole.total, 4),
            }
        )
    crossings = {
        f"{rows_}x{cols}, {definition}": round(
            traffic.dearer_from(rows_, cols, traffic.rank_of(rows_, cols, definition)), 1
        )
        for rows_, cols in ((768, 768), (3072, 768), (4096, 4096), (11008, 4096), (14336, 4096))
        for definition in ("rank_dropped", "params_saved", "kept")
    }
    return {"rank": rank, "by_tokens": rows, "svd_costs_traffic_from_tokens": crossings}


def check_counted() -> dict[str, Any]:
    """Run the counting products on shapes that tiles do and do not divide. Every count must be the formula's."""
    cases = [(24, 32, 40), (7, 33, 50), (1, 96, 65), (31, 17, 29)]
    found = []
    for m, k, n in cases:
        for tile in TILES:
            for name, got, want in _counted(m, k, n, 11, tile):
                case = {"product": name, "shape": [m, k, n], "tile": tile, "reads": got.reads, "writes": got.writes}
                found.append(case | {"equal": got == want})
    return {"cases": len(found), "equal": sum(case["equal"] for case in found), "examples": found[:8]}


def _counted(m: int, k: int, n: int, rank: int, tile: int) -> list[tuple[str, Moved, Moved]]:
    numbers = np.random.default_rng(m * k * n)
    a, b, v, s, u, keys = (
        numbers.standard_normal(size) for size in ((m, k), (k, n), (k, rank), (1, rank), (rank, n), (n, k))
    )
    slow = [Slow() for _ in range(6)]
    counted.naive(slow[0], a, b)
    counted.tiled(slow[1], a, b, tile)
    counted.factored(slow[2], a, v, s, u, tile)
    counted.fused(slow[3], a, v, s, u, tile)
    counted.attention_naive(slow[4], a, keys, keys, tile)
    counted.attention_tiled(slow[5], a, keys, keys, tile)
    wanted = [
        ("naive", traffic.naive(m, k, n)),
        ("tiled", traffic.tiled(m, k, n, tile)),
        ("factored", traffic.factored(m, k, n, rank, tile)),
        ("fused", traffic.fused(m, k, n, rank, tile)),
        ("attention, naive", traffic.attention_naive(m, n, k, tile)),
        ("attention, tiled", traffic.attention_tiled(m, n, k, tile)),
    ]
    return [(name, one.moved, want) for (name, want), one in zip(wanted, slow, strict=True)]

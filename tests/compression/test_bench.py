"""The figures of `efedllm bench compression` count what they say they count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from efedllm.compression import CompressOptions, compress
from efedllm_bench.compression import matrix as compression_matrix
from efedllm_bench.compression.report import draw, load, save
from efedllm_bench.compression.run import CompressionCase, cases, optimal, ratios


def test_ratios_of_factors_integers_and_rows(worded: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(worded("llama"))
    int8 = ratios(compress(CompressOptions(source, tmp_path / "int8", method="int8")))
    assert (int8["rank_dropped"], int8["params_saved"]) == (0, 0)
    assert int8["bytes_saved"] == pytest.approx(0.5 - 2 / 32, abs=0.02)
    packed = ratios(compress(CompressOptions(source, tmp_path / "int4", method="lowrank+int4")))
    assert packed["params_saved"] < 0 < packed["bytes_saved"]
    factors = ratios(compress(CompressOptions(source, tmp_path / "svd", keep=0.5)))
    # The smaller matrices lose more to rounding their rank down; a square one at half its numbers has a quarter rank.
    assert factors["params_saved"] == pytest.approx(0.5, abs=0.06)
    assert factors["rank_dropped"] == pytest.approx(0.7, abs=0.08)


def test_a_shared_factor_counts_once(worded: Callable[[str], Path], tmp_path: Path) -> None:
    options = CompressOptions(
        str(worded("llama")), tmp_path / "out", method="kfac", budget=0.4, all_factored=True, calibration_tokens=512
    )
    manifest = compress(options)
    assert any(tensor.stack for tensor in manifest.tensors)
    found = ratios(manifest)
    # Factors of float32 weights: every number has four bytes of which 16-bit weights have two.
    assert found["bytes_saved"] == pytest.approx(1 - 2 * (1 - found["params_saved"]), abs=1e-4)


def row(name: str, saved: float, *increase: float) -> dict[str, object]:
    texts = dict(enumerate(increase))
    return {"name": name, "bytes_saved": saved, "increase": texts, "top1": texts}


def test_the_optimum_keeps_the_floor_on_both_texts() -> None:
    rows = [
        row("a", 0.5, 0.001, 0.002),
        row("b", 0.7, 0.009, 0.015),
        row("c", 0.8, 0.03, 0.2),
        row("d", 0.75, 0.04, 0.05),
    ]
    assert [(one["floor"], one["name"]) for one in optimal(rows)] == [(0.01, "a"), (0.02, "b"), (0.05, "d")]


def test_every_case_is_asked_for_once() -> None:
    full, quick = cases(False), cases(True)
    assert len({json.dumps(vars(case)) for case in full}) == len(full)
    assert set(quick) <= {*full, CompressionCase("int8", "int8", 0.49)}


def test_a_power_law_is_found_again_and_summed_over_the_layers() -> None:
    def seconds(rows: int, cols: int) -> float:
        return float(2e-12 * (rows * cols * min(rows, cols)) ** 1.1)

    rows = [{"method": "m", "rows": r, "cols": c, "cpu_seconds": seconds(r, c)} for r, c in compression_matrix.SIZES]
    found = compression_matrix._extrapolated(rows)["m"]
    assert found["power"] == pytest.approx(1.1, abs=1e-3)
    expected = 80 * sum(seconds(*shape) for shape in compression_matrix.MODEL_70B) / 3600
    assert found["cpu_hours"] == pytest.approx(expected, rel=0.02)


def test_parts_of_a_result_are_kept_and_drawn(tmp_path: Path) -> None:
    curve = {
        "model": "m",
        "tokens": {"a": 1, "b": 1},
        "rows": [
            {"name": "x", "bytes_saved": s, "increase": {"a": s, "b": s}, "top1": {"a": s, "b": s}} for s in (0.1, 0.2)
        ],
    }
    timed = {"threads": 1, "rows": [{"method": "m", "rows": n, "cols": n, "cpu_seconds": n / 10} for n in (1, 2)]}
    save(tmp_path, curves=curve)
    save(tmp_path, matrix=timed)
    result = load(tmp_path)
    assert (result["curves"], result["matrix"], set(result["machine"])) == (
        curve,
        timed,
        {"cpu", "cores", "torch", "threads"},
    )
    draw(result, tmp_path)
    for name in ("compression.png", "compression-time.png"):
        assert 1000 < (tmp_path / name).stat().st_size < 80_000

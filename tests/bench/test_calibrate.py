"""Calibrating a float model: honest machines below the limit, cheats above it, the limit in the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from efedllm.commitments.canonical import WireDtype
from efedllm.compression import CompressOptions, compress
from efedllm.engine.select import load_executor
from efedllm.errors import ConfigError
from efedllm.models.manifest import Manifest
from efedllm.models.tolerance import ATTACK_MARGIN, LEAST_TAU
from efedllm_bench.attacks.search.order_sensitive_models import backdoored
from efedllm_bench.calibration.limits import HONEST_MARGIN
from efedllm_bench.calibration.measure import (
    CalibrateOptions,
    calibrate,
    decide,
    deviations,
    has_integers,
    hop_ranges,
    prefilled,
)
from efedllm_bench.calibration.tried_cheats import CalibrationShop, armed, changes, cheats, one_matrix
from efedllm_bench.cheats.weights import Edit, falsify
from efedllm_bench.fleet.machines import Machine, native_machines
from efedllm_verifier.statistic import ROUNDING, Limits, Outcome, compare
from tests.model_fixtures import bundled_model, checkpoint, published, with_words

__all__ = ["bundled_model", "checkpoint", "published"]

NOISES = {"weights off by 1e-4", "output off by 1e-4"}
FLEET = (Machine(1, "default", False), Machine(1, "avx2", True))


def edits(directory: Path) -> dict[str, Edit]:
    """The cheats on a model that edit its matrices."""
    return {cheat.name: cheat.edit for cheat in cheats(Manifest.load(directory)) if cheat.edit is not None}


@pytest.fixture(scope="module")
def source(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("calibrate") / "words"
    with_words(checkpoint("llama"), target)
    return target


def test_the_limit_lies_between_the_honest_and_the_weakest_cheat(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    plain = compress(CompressOptions(str(source), out, keep=0.5))
    said: list[str] = []
    options = CalibrateOptions(out, (source / "calibration.txt",), 300, FLEET)
    calibrated, report = calibrate(options, said.append)
    found = calibrated.tolerance
    assert found is not None
    assert Manifest.load(out) == calibrated
    assert calibrated.weights_root == plain.weights_root
    assert calibrated.hash() != plain.hash()
    assert 0 < found.honest_max * 8 <= found.tau
    # Rows of every machine, mode, range and input.
    assert found.honest_count == report["honest_rows"] > 300 * len(FLEET) * 3
    every = cheats(plain)
    assert set(report["cheats"]) == {cheat.name for cheat in every if cheat.counts}
    assert set(report["noises"]) == {cheat.name for cheat in every if not cheat.counts} == NOISES
    assert report["noises"]["output off by 1e-4"] == pytest.approx(1e-4, rel=0.05)
    assert report["noises"]["weights off by 1e-4"] < found.attack_min
    # float32 factors: every way of rounding them is a cheat.
    assert {"bf16 weights", "int8 weights", "rank 90 %", "keys and values in fp8"} <= set(report["cheats"])
    assert report["cheats"][found.weakest_attack] == found.attack_min == min(report["cheats"].values())
    assert found.slashable
    assert found.attack_min > ATTACK_MARGIN * found.tau
    canonical = json.dumps(report, sort_keys=True, separators=(",", ":")).encode()
    assert found.evidence == hashlib.sha256(canonical).hexdigest()
    assert sum("honest machine" in line for line in said) == len(FLEET)


def test_deviations_are_what_the_statistic_measures() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    ours = x + np.float32(2)
    rows = ours.copy()
    rows[1] += np.float32(1e-3)
    plain, beyond = deviations(rows, ours, x)
    assert plain == pytest.approx([0.0, 5e-4, 0.0], rel=1e-3)
    assert beyond[1] < plain[1]
    tau = float(beyond.max()) * 1.01
    assert compare(rows, ours, x, WireDtype.F32, Limits(tau, ROUNDING)).outcome is Outcome.PASS
    assert compare(rows, ours, x, WireDtype.F32, Limits(tau / 1.1, ROUNDING)).outcome is Outcome.FAIL


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 22])
def test_ranges_cover_every_layer(layers: int) -> None:
    ranges = hop_ranges(layers)
    assert len(set(ranges)) == len(ranges)
    assert {layer for lo, hi in ranges for layer in range(lo, hi)} == set(range(layers))
    assert (0, layers) in ranges
    assert (0, 1) in ranges


def test_an_encoder_is_measured_over_whole_texts(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    text = with_words(checkpoint("bert"), tmp_path / "words")
    out = tmp_path / "model"
    compress(CompressOptions(str(tmp_path / "words"), out, keep=0.5))
    calibrated, report = calibrate(CalibrateOptions(out, (text,), 300, FLEET), lambda _: None)
    found = calibrated.tolerance
    assert found is not None
    assert report["modes"] == ["prefill", "batched"]
    assert "one layer left out" in report["cheats"]
    assert "keys and values in fp8" not in report["cheats"]
    assert 0 < found.honest_max * 8 <= found.tau
    assert found.honest_count > 300 * len(FLEET) * 2
    assert found.slashable
    # A verifier measures the hops of this encoder by it, and no cheat passes.
    limits = Limits.of(Manifest.load(out).tolerance)
    assert (limits.tau, limits.slashable) == (found.tau, True)
    honest = load_executor(out, 0, 3)
    ids = np.arange(40, dtype=np.int32) * 7 % 96
    ours, x = prefilled(honest, ids), honest.embed(ids)
    for name in ("bf16 weights", "int8 weights", "rank 98 %"):
        cheat = load_executor(falsify(out, tmp_path / name, edits(out)[name], 0, 3), 0, 3)
        assert compare(prefilled(cheat, ids), ours, x, WireDtype.F32, limits).outcome is not Outcome.PASS, name
    assert compare(ours, ours, x, WireDtype.F32, limits).outcome is Outcome.PASS


def test_integers_are_measured_with_every_kind_of_product(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    compress(CompressOptions(str(source), out, method="lowrank+int4", budget=0.5))
    assert has_integers(Manifest.load(out))
    text = (source / "calibration.txt",)
    calibrated, report = calibrate(CalibrateOptions(out, text, 300, FLEET[:1]), lambda _: None)
    found = calibrated.tolerance
    assert found is not None
    others = native_machines()
    assert report["machines"] == [FLEET[0].name, *(machine.name for machine in others)]
    assert len({machine.native for machine in others}) == len(others)
    assert 0 < found.honest_max * 8 <= found.tau
    assert {"bf16 weights", "int8 weights", "rank 90 %"} <= set(report["cheats"])
    assert found.slashable


def test_rounding_to_what_is_published_is_no_cheat(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert has_integers(compress(CompressOptions(str(source), out, keep=0.5, quant="int8")))
    changing = {name for name, edit in edits(out).items() if changes(out, edit, 0, 3)}
    assert changing == set(edits(out)) - {"int8 weights"}


def test_a_packed_matrix_is_falsified_from_what_it_stands_for(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    compress(CompressOptions(str(source), packed, method="lowrank+int4", budget=0.5))
    assert any(tensor.form == "packed" and tensor.rank for tensor in Manifest.load(packed).tensors)
    ids = np.arange(24, dtype=np.int32) * 5 % 96
    ours = prefilled(load_executor(packed, 0, 8), ids)
    same = load_executor(falsify(packed, tmp_path / "same", lambda matrix: matrix, 0, 8), 0, 8)
    assert prefilled(same, ids) == pytest.approx(ours, rel=1e-3, abs=1e-3)
    assert Manifest.load(tmp_path / "same").quant == "packed"
    assert {t.form for t in Manifest.load(tmp_path / "same").tensors} <= {"dense", "lowrank"}


def test_what_has_no_tolerance_is_refused(source: Path, tmp_path: Path) -> None:
    text = (source / "calibration.txt",)
    plain = tmp_path / "plain"
    manifest = compress(CompressOptions(str(source), plain))
    manifest.with_profile("exact", bytes(32)).save(plain)
    with pytest.raises(ConfigError) as exact:
        calibrate(CalibrateOptions(plain, text, 300, FLEET), print)
    assert exact.value.code == "not-float"
    manifest.save(plain)
    with pytest.raises(ConfigError) as few:
        calibrate(CalibrateOptions(plain, (), 300, FLEET), print)
    assert few.value.code == "bad-options"


def test_a_text_that_is_too_short_is_refused(source: Path, tmp_path: Path) -> None:
    """However many tokens are asked for."""
    out, short = tmp_path / "model", tmp_path / "short.txt"
    compress(CompressOptions(str(source), out))
    short.write_text("a few words")
    with pytest.raises(ConfigError) as caught:
        calibrate(CalibrateOptions(out, (short,), 4096, FLEET), print)
    assert caught.value.code == "bad-options"
    assert Manifest.load(out).tolerance is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_every_cheat_that_counts_changes_rows(checkpoint: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    """Of every family, and by more than any honest machine strays."""
    out = tmp_path / "model"
    manifest = compress(CompressOptions(str(checkpoint(family)), out, keep=0.5))
    honest, shop = load_executor(out, 0, 3), CalibrationShop(out, tmp_path / "work", "float")
    ids = np.arange(40, dtype=np.int32) * 7 % 96
    ours, x = prefilled(honest, ids), honest.embed(ids)
    for cheat in cheats(manifest):
        cheating = armed(cheat, shop, honest)
        assert cheating is not None
        worst = deviations(prefilled(cheating, ids), ours, x)[0].max()
        assert worst > (LEAST_TAU if cheat.counts else 0), cheat.name
    # A layer left out of one alone is none.
    alone = load_executor(out, 0, 1)
    assert {cheat.name for cheat in cheats(manifest) if armed(cheat, shop, alone) is None} == {"one layer left out"}
    shop.clear()
    assert list((tmp_path / "work").iterdir()) == []


def test_an_update_of_one_matrix_is_seen_whichever_it_is(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    manifest = compress(CompressOptions(str(source), out))
    one = one_matrix(manifest)
    first, *_ = (tensor.name for tensor in manifest.tensors if 0 <= tensor.layer < 3 and tensor.cols > 1)
    assert not first.endswith(one)
    assert sum(tensor.name.endswith(one) for tensor in manifest.tensors) == manifest.layers
    assert changes(out, edits(out)[f"rank-1 update of 1e-3 of {one}"], 0, 3)


def test_the_limit_follows_from_what_was_measured() -> None:
    attacks = {"weak": 3e-4, "strong": 0.3}
    found = decide(1e-5, -14.0, 0.3, attacks)
    assert found.tau == pytest.approx(HONEST_MARGIN * 1e-5)
    assert (found.weakest, found.attack_min) == ("weak", 3e-4)
    assert found.slashable
    assert decide(1e-7, -20.0, 0.1, attacks).tau == LEAST_TAU
    assert decide(1e-5, -12.0, 0.5, attacks).tau == pytest.approx(np.exp(-7.0))
    # The limit misses the weakest, and tells the rest: it fails them and slashes nobody.
    wide = decide(1e-4, -12.0, 0.1, attacks)
    assert wide.attack_min < wide.tau < attacks["strong"]
    assert not wide.slashable


@pytest.mark.parametrize(
    ("honest_max", "log_mean", "log_sd"),
    [(3e-4, -10.0, 0.1), (1e-2, -10.0, 0.1), (0.2, -3.0, 0.1), (1e-5, -12.0, 1.3), (1e-5, -12.0, 200.0)],
)
def test_no_limit_is_made_where_it_would_tell_nobody_from_anybody(
    honest_max: float, log_mean: float, log_sd: float
) -> None:
    with pytest.raises(ConfigError) as caught:
        decide(honest_max, log_mean, log_sd, {"weak": 3e-4, "strong": 0.3})
    assert caught.value.code == "no-tolerance"
    assert caught.value.hint


def test_a_model_made_to_have_the_honest_accused_is_refused(source: Path, tmp_path: Path) -> None:
    """Its sums depend on their order, so that honest machines stray as far as cheats."""
    bad, out = tmp_path / "bad", tmp_path / "model"
    shutil.copytree(source, bad)
    save_file(backdoored(load_file(bad / "model.safetensors")), bad / "model.safetensors", metadata={"format": "pt"})
    plain = compress(CompressOptions(str(bad), out))
    with pytest.raises(ConfigError) as caught:
        calibrate(CalibrateOptions(out, (source / "calibration.txt",), 300, FLEET), lambda _: None)
    assert caught.value.code == "no-tolerance"
    assert Manifest.load(out) == plain

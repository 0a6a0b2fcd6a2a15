"""Engines by hash: fetched, self-tested, bounded; a backend that drifts accuses nobody."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from efedllm.chain.types import ModelInfo
from efedllm.engine.protocol import Executor
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm.models.tolerance import Tolerance
from efedllm_verifier.engine_cache import EngineCache, golden_input, self_test
from efedllm_verifier.statistic import BackendError, DeviationLimits
from tests.verifier.audit_lab import as_bfloat16, load, noisy, tamper


def model_of(published: Path) -> ModelInfo:
    manifest = Manifest.load(published)
    return ModelInfo(
        bytes(32), "0x" + "00" * 20, manifest.root, manifest.hash(), manifest.layers, manifest.hidden, 0, 0, 0, 1, "", 0
    )


@pytest.fixture
def engines(published: Path, tmp_path: Path) -> Iterator[EngineCache]:
    made = EngineCache(tmp_path / "home", [str(published)], 1 << 30)
    yield made
    made.close()


async def test_an_engine_is_loaded_once_and_tested_every_time(
    engines: EngineCache, published: Path, tmp_path: Path
) -> None:
    first = await engines.executor(model_of(published), 3, 6)
    golden = list((tmp_path / "home" / "golden").iterdir())
    assert [path.name for path in golden] == [f"{model_of(published).manifest_hash.hex()}-3-6.npy"]
    assert await engines.executor(model_of(published), 3, 6) is first
    values = np.load(golden[0])
    np.save(golden[0], values * np.float32(1.001))
    with pytest.raises(BackendError, match="drifted"):
        await engines.executor(model_of(published), 3, 6)


async def test_two_audits_at_once_load_the_weights_once(published: Path, tmp_path: Path) -> None:
    loads: list[int] = []

    def counting(directory: Path, lo: int, hi: int) -> Executor:
        loads.append(lo)
        return load(directory, lo, hi)

    engines = EngineCache(tmp_path / "home", [str(published)], 1 << 30, counting)
    try:
        first, second = await asyncio.gather(*(engines.executor(model_of(published), 3, 6) for _ in range(2)))
    finally:
        engines.close()
    assert first is second
    assert loads == [3]


async def test_where_one_engine_fits_loads_wait_for_each_other(published: Path, tmp_path: Path) -> None:
    held: list[int] = []
    engines: EngineCache

    def counting(directory: Path, lo: int, hi: int) -> Executor:
        held.append(len(engines.held))
        return load(directory, lo, hi)

    engines = EngineCache(tmp_path / "home", [str(published)], 1 << 30, counting, one=True)
    try:
        loaded = await asyncio.gather(*(engines.executor(model_of(published), lo, lo + 1) for lo in (3, 4, 5)))
        assert [engine.lo for engine in loaded] == [3, 4, 5]
        assert held == [0, 0, 0]
        assert len(engines.held) == 1
    finally:
        engines.close()


async def test_two_ranges_of_one_model_are_fetched_at_once(published: Path, tmp_path: Path) -> None:
    """Both want the tokenizer: neither may take the other's half-written file for a spoilt one, and abstain."""
    engines = EngineCache(tmp_path / "home", [], 1 << 30)
    try:
        loaded = await asyncio.gather(
            *(engines.executor(model_of(published), lo, lo + 1, [str(published)]) for lo in (3, 4, 5))
        )
    finally:
        engines.close()
    assert [engine.lo for engine in loaded] == [3, 4, 5]


async def test_the_least_recently_used_engine_goes_first(published: Path, tmp_path: Path) -> None:
    model = model_of(published)
    size = load(published, 3, 4).weight_bytes
    engines = EngineCache(tmp_path / "home", [str(published)], int(2.5 * size))
    try:
        for lo in (2, 3, 2, 4):
            await engines.executor(model, lo, lo + 1)
        assert [key[1] for key in engines.held] == [2, 4]
    finally:
        engines.close()


async def test_one_engine_may_exceed_the_bound_alone(published: Path, tmp_path: Path) -> None:
    engines = EngineCache(tmp_path / "home", [str(published)], 1)
    try:
        await engines.executor(model_of(published), 3, 5)
        await engines.executor(model_of(published), 5, 6)
        assert [key[1:] for key in engines.held] == [(5, 6)]
    finally:
        engines.close()


async def test_weights_come_from_any_mirror_and_are_checked(published: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(published, spoilt)
    layer = spoilt / "layer-0003.safetensors"
    data = bytearray(layer.read_bytes())
    data[-1] ^= 1
    layer.write_bytes(data)
    model = model_of(published)
    engines = EngineCache(tmp_path / "home", [str(spoilt)], 1 << 30)
    try:
        with pytest.raises(ModelError) as caught:
            await engines.executor(model, 3, 4)
        assert caught.value.code == "corrupt-weights"
        engine = await engines.executor(model, 3, 4, [str(published)])
        assert (engine.lo, engine.hi) == (3, 4)
    finally:
        engines.close()


async def test_a_loader_that_cheats_is_noticed_at_the_next_start(published: Path, tmp_path: Path) -> None:
    """What an upgrade that computes differently looks like."""
    model = model_of(published)
    honest = EngineCache(tmp_path / "home", [str(published)], 1 << 30)
    await honest.executor(model, 3, 6)
    honest.close()

    def changed(directory: Path, lo: int, hi: int) -> Executor:
        return tamper(load(directory, lo, hi), as_bfloat16)

    upgraded = EngineCache(tmp_path / "home", [str(published)], 1 << 30, changed)
    try:
        with pytest.raises(BackendError, match="drifted"):
            await upgraded.executor(model, 3, 6)
    finally:
        upgraded.close()


def test_the_golden_input_is_fixed(published: Path) -> None:
    ids = golden_input(load(published, 0, 1))
    assert ids.dtype == np.int32
    assert ids[:4].tolist() == golden_input(load(published, 0, 2))[:4].tolist()
    states = golden_input(load(published, 1, 2))
    assert states.dtype == np.float32
    assert states.shape == (len(ids), 256)
    assert np.abs(states).max() < 1.0
    assert np.abs(states).mean() > 0.4


def test_a_self_test_passes_again_and_again(published: Path, tmp_path: Path) -> None:
    engine = load(published, 0, 2)
    for _ in range(2):
        self_test(engine, tmp_path / "golden.npy")


def test_a_broken_golden_file_is_our_problem(published: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden.npy"
    golden.write_bytes(b"not numpy")
    with pytest.raises(BackendError, match="delete it"):
        self_test(load(published, 3, 4), golden)
    np.save(golden, np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(BackendError, match="another shape"):
        self_test(load(published, 3, 4), golden)


def test_small_noise_is_already_too_much_for_a_verifier(published: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden.npy"
    self_test(load(published, 3, 6), golden)
    with pytest.raises(BackendError, match="drifted"):
        self_test(tamper(load(published, 3, 6), noisy(1e-4)), golden)


def widened(published: Path, target: Path) -> Path:
    """The model with a tolerance of 1e-3, as calibrating one whose honest spread is large gives."""
    shutil.copytree(published, target)
    tolerance = Tolerance(
        tau=1e-3,
        rounding=5e-7,
        honest_max=1e-4,
        honest_count=1,
        log_mean=-10.0,
        log_sd=0.1,
        attack_min=1e-2,
        weakest_attack="rank 90 %",
        settings=("avx2", "avx512"),
        evidence="0a" * 32,
        slashable=True,
        compute="float32",
    )
    Manifest.load(target).model_copy(update={"tolerance": tolerance}).save(target)
    return target


async def test_a_verifier_tests_itself_by_the_models_own_limits(published: Path, tmp_path: Path) -> None:
    """Stricter than its audits it would abstain from a model whose honest machines stray far; laxer, accuse them."""
    wide = widened(published, tmp_path / "wide")
    for deviation in (0.0, 1e-5):
        changed = partial(_noisy_load, deviation)
        engines = EngineCache(tmp_path / "home", [str(wide)], 1 << 30, changed)
        try:
            await engines.executor(model_of(wide), 3, 6)
        finally:
            engines.close()
    engine, golden = load(published, 3, 6), tmp_path / "golden.npy"
    self_test(engine, golden)
    slightly = tamper(load(published, 3, 6), noisy(3e-7))
    self_test(slightly, golden)
    with pytest.raises(BackendError, match="drifted"):
        self_test(slightly, golden, DeviationLimits(tau=1e-7, rounding=0.0))


def _noisy_load(deviation: float, directory: Path, lo: int, hi: int) -> Executor:
    return tamper(load(directory, lo, hi), noisy(deviation)) if deviation else load(directory, lo, hi)

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efedllm.engine.blocks import token_blocks
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.memory.layer_streaming import Budget, TieredLayers
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ConfigError, ModelError
from efedllm.models.manifest import layer_file
from efedllm.sizes import parse_size
from efedllm_bench.memory.process import Options, inputs
from efedllm_bench.memory.synthetic import LlamaShape, publish_synthetic

Engine = type[ShardEngine] | type[ExactShardEngine]
BOTH = [(ShardEngine, "int8"), (ShardEngine, "fp32"), (ExactShardEngine, "int8"), (ExactShardEngine, "int4")]
SHAPE = LlamaShape(512, 2048, 8, 4, 2, 96, 512)


def depth(form: str) -> int:
    """Layers: of few bits it takes more of them for the same memory."""
    return 24 if form == "int4" else 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in made:
            made[form] = tmp_path_factory.mktemp(form)
            publish_synthetic(made[form], replace(SHAPE, layers=depth(form)), form)  # type: ignore[arg-type]
        return made[form]

    return make


# --- what stays in memory ---


def test_layers_that_fit_stay_and_the_rest_needs_room_for_two() -> None:
    budget = Budget(100, 10, (10,) * 8, (5,) * 8)
    assert budget.resident(5) == 8
    assert budget.resident(10) == 5  # 10 + 10 + 50 + (10 + 10 + 5) = 95
    assert budget.resident(60) == 0
    with pytest.raises(ModelError, match="take 1 MB") as caught:
        budget.resident(66)
    assert caught.value.code == "ram-exceeded"


@given(
    st.integers(0, 300),
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=9),
)
def test_what_is_said_to_fit_fits_at_every_turn_of_the_scan(total: int, working: int, sizes: Any) -> None:
    held, building = zip(*sizes, strict=True)
    budget = Budget(total, 3, held, building)
    try:
        resident = budget.resident(working)
    except ModelError:
        assert all(budget.needed(count, working) > total for count in range(len(sizes) + 1))
        return
    streamed = list(range(resident, len(sizes)))
    for place, index in enumerate(streamed):
        following = streamed[(place + 1) % len(streamed)]
        peak = 3 + working + sum(held[:resident]) + held[index] + held[following] + building[following]
        assert peak <= total
    assert 3 + working + sum(held[:resident]) <= total


def test_a_prefix_is_built_once_and_never_more_than_one_layer_ahead() -> None:
    built: list[int] = []
    computing = 0

    def build(index: int) -> int:
        assert index <= computing + 1 or computing == 5
        built.append(index)
        return index

    def use(index: int, layer: int) -> None:
        nonlocal computing
        assert layer == index
        computing = index

    layers = TieredLayers(build, Budget(10_000, 0, (1000,) * 6, (0,) * 6))
    layers.make_room(6_000)
    assert layers.resident == 2
    for _ in range(3):
        layers.run(use)
    layers.make_room(6_000)
    assert [built.count(index) for index in (0, 1)] == [1, 1]
    # Layer 2 may be under way for a pass that has not begun.
    assert [built.count(index) for index in (3, 4, 5)] == [3, 3, 3]
    layers.make_room(8_000)
    assert layers.resident == 0
    layers.run(use)
    assert built.count(1) == 2


def test_a_layer_that_cannot_be_prepared_fails_the_step_and_not_the_next_one() -> None:
    broken = True

    def build(index: int) -> int:
        if broken and index == 1:
            raise ModelError("missing-file", "gone")
        return index

    layers = TieredLayers(build, Budget(3, 0, (1,) * 4, (0,) * 4))
    layers.make_room(1)
    with pytest.raises(ModelError, match="gone"):
        layers.run(lambda _index, _layer: None)
    broken = False
    seen: list[int] = []
    layers.make_room(1)
    layers.run(lambda index, _layer: seen.append(index))
    assert seen == [0, 1, 2, 3]


# --- engines ---


def outputs(engine: Any) -> list[bytes]:
    """Two sequences: prefill, mixed batch, decode."""
    first, second = engine.new_sequence(), engine.new_sequence()
    found = engine.step([StepItem(first, inputs(engine, 1, 300))])
    found += engine.step([StepItem(second, inputs(engine, 2, 40)), StepItem(first, inputs(engine, 3, 1))])
    found += engine.step([StepItem(second, inputs(engine, 4, 1)), StepItem(first, inputs(engine, 5, 1))])
    return [states.tobytes() for states in found] + [engine.logits(found[-1]).tobytes()]


@pytest.mark.parametrize(("kind", "form"), BOTH)
def test_within_a_budget_results_are_the_same_to_the_bit(kind: Engine, form: str, model: Callable[[str], Path]) -> None:
    directory = model(form)
    resident = kind.load(directory, 0, depth(form), block=64)
    assert resident.tiers is None
    least = minimum(kind, directory, depth(form))
    tight, roomy = (
        kind.load(directory, 0, depth(form), ram=ram, block=64)
        for ram in (least + (16 << 20) + resident.weight_bytes // 4, 1 << 30)
    )
    assert tight.tiers is not None
    assert roomy.tiers is not None
    assert tight.tiers.resident < depth(form) == roomy.tiers.resident
    assert tight.tiers.slowdown >= roomy.tiers.slowdown == 1
    assert tight.weight_bytes < roomy.weight_bytes == resident.weight_bytes + tables(roomy)
    want = outputs(resident)
    assert outputs(tight) == want
    assert outputs(tight) == want
    assert outputs(roomy) == want


def tables(engine: Any) -> int:
    """Bytes of the rotary tables, which count as fixed."""
    return engine._tables.nbytes if isinstance(engine, ExactShardEngine) and engine._tables is not None else 0


def minimum(kind: Engine, directory: Path, layers: int = 8) -> int:
    """Bytes that the refusal of a tiny budget asks for."""
    with pytest.raises(ModelError) as caught:
        kind.load(directory, 0, layers, ram=1)
    assert caught.value.code == "ram-exceeded"
    return int(caught.value.hint.split("--ram ")[1].split("MB")[0]) * 10**6


@pytest.mark.parametrize(("kind", "form"), [BOTH[0], BOTH[2]])
def test_a_growing_cache_takes_the_place_of_layers_and_is_refused_when_none_is_left(
    kind: Engine, form: str, model: Callable[[str], Path]
) -> None:
    directory = model(form)
    engine = kind.load(directory, 0, 8, ram=minimum(kind, directory) + (20 << 20), block=64)
    alone = engine.new_sequence()
    engine.step([StepItem(alone, inputs(engine, 1, 3))])
    held = engine.weight_bytes
    crowd = []

    def one_more() -> None:
        crowd.append(engine.new_sequence())
        engine.step([StepItem(crowd[-1], inputs(engine, len(crowd), 64))])

    with pytest.raises(ModelError) as caught:  # noqa: PT012 - which of many calls raises is the question
        for _ in range(200):
            one_more()
    assert caught.value.code == "ram-exceeded"
    assert crowd[-1].length == 0
    assert len(crowd) > 3
    assert engine.weight_bytes < held
    crowd.clear()
    engine.step([StepItem(alone, inputs(engine, 2, 1))])
    assert alone.length == 4
    assert engine.weight_bytes == held


@pytest.mark.parametrize("kind", [ShardEngine, ExactShardEngine])
def test_a_corrupt_layer_is_refused_at_start(kind: Engine, tmp_path: Path) -> None:
    publish_synthetic(tmp_path, LlamaShape(64, 128, 3, 4, 2, 96), "int8")
    (tmp_path / layer_file(2)).write_bytes(b"\0" * 100)
    with pytest.raises(ModelError):
        kind.load(tmp_path, 0, 3, ram=1 << 30)


@pytest.mark.parametrize(("kind", "form"), [BOTH[0], BOTH[2], BOTH[3]])
def test_blocks_of_tokens_change_nothing(kind: Engine, form: str, model: Callable[[str], Path]) -> None:
    directory = model(form)
    whole, cut = (kind.load(directory, 0, 2, block=block) for block in (4096, 24))
    for engine in (whole, cut):
        sequences = [engine.new_sequence() for _ in range(3)]
        engine.step([StepItem(sequences[0], inputs(engine, 1, 30))])
    batches = []
    for engine in (whole, cut):
        sequences = [engine.new_sequence() for _ in range(3)]
        engine.step([StepItem(sequences[0], inputs(engine, 1, 30))])
        batches.append(
            engine.step(
                [
                    StepItem(s, inputs(engine, 7 + i, n))
                    for i, (s, n) in enumerate(zip(sequences, (50, 1, 33), strict=True))
                ]
            )
        )
    for left, right in zip(*batches, strict=True):
        if kind is ExactShardEngine:
            assert left.tobytes() == right.tobytes()
        else:
            np.testing.assert_allclose(left, right, atol=2e-5 * float(np.abs(left).max()))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 50))
def test_blocks_cover_every_token_once_in_order(counts: list[int], size: int) -> None:
    names = [f"s{i}" for i in range(len(counts))]
    tokens = [(name, at) for name, count in zip(names, counts, strict=True) for at in range(count)]
    found = []
    for block in token_blocks(names, counts, size):
        mine = [
            (name, offset + at)
            for name, count, offset in zip(block.caches, block.counts, block.offsets, strict=True)
            for at in range(count)
        ]
        assert tokens[block.rows] == mine
        assert 1 <= len(mine) <= size
        found += mine
    assert found == tokens


# --- real memory ---


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("exact", "form", "ram", "times"), [(False, "fp32", 140, 3), (True, "int8", 70, 2.5)])
def test_peak_memory_of_a_process_stays_within_the_budget(
    exact: bool, form: str, ram: int, times: float, tmp_path: Path
) -> None:
    layers = 34 if exact else 20
    shape = LlamaShape(512, 3072, layers, 8, 4, 512, 1024)
    publish_synthetic(tmp_path / "tiny", LlamaShape(64, 128, 2, 4, 2, 96), form)  # type: ignore[arg-type]
    publish_synthetic(tmp_path / "big", shape, form)  # type: ignore[arg-type]
    tight = Options(str(tmp_path / "big"), str(tmp_path / "tiny"), exact, 0, layers, ram * 10**6, 100, 1)
    resident = Options(**asdict(tight) | {"ram": None})
    within, whole = in_process(tight), in_process(resident)
    assert whole["weight_bytes"] >= times * ram * 10**6
    assert within["peak"] - within["baseline"] <= ram * 10**6
    assert within["sha256"] == whole["sha256"]
    assert within["tiers"]["resident"] < layers


def in_process(options: Options) -> dict[str, Any]:
    command = [sys.executable, "-m", "efedllm_bench.memory.process", json.dumps(asdict(options))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


# --- devices and sizes ---


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_what_the_cpu_does(model: Callable[[str], Path]) -> None:
    cpu = ShardEngine.load(model("int8"), 0, 8)
    held = ShardEngine.load(model("int8"), 0, 8, device="cuda")
    tight = ShardEngine.load(model("int8"), 0, 8, device="cuda", ram=minimum(ShardEngine, model("int8")) + (22 << 20))
    for engine in (held, tight):
        for left, right in zip(outputs(cpu), outputs(engine), strict=True):
            want = np.frombuffer(left, np.float32)
            np.testing.assert_allclose(np.frombuffer(right, np.float32), want, atol=1e-4 * float(np.abs(want).max()))


def test_a_device_that_is_not_there_is_refused(model: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError) as caught:
        ShardEngine.load(model("int8"), 0, 8, device="tpu")
    assert caught.value.code == "no-device"


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("512MiB", 512 << 20), ("1.5 gb", 1_500_000_000), ("1000", 1000), ("0.5KiB", 512)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 parsecs", "0", "1e9", "2G B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert caught.value.code == "bad-size"

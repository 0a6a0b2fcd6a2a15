"""Taps: the same bytes however the work is cut, batched and split, and the numbers the specification says."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from efedllm.commitments.hashing import keccak
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.taps import TAP_BYTES, TapExecutor, tap_coordinates
from efedllm.models.manifest import Manifest
from tests.engine.exact_helpers import publish_counters, stream_ids
from tests.engine.exact_reference import Reference

PROMPT = stream_ids("taps", 12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("taps") / "qwen2"
    publish_counters(directory, "qwen2", 12)
    return directory


def whole(engine: TapExecutor) -> npt.NDArray[np.uint8]:
    return engine.step_with_taps([StepItem(engine.new_sequence(), PROMPT)])[0].taps


def test_the_taps_are_the_quantised_hidden_rows_of_the_last_layer(model: Path) -> None:
    taps = whole(ExactShardEngine.load(model, 0, 3))
    reference = Reference(model)
    reference.run([int(t) for t in PROMPT])
    hidden = reference.hidden[2]
    where = tap_coordinates(Manifest.load(model).root, 2, len(hidden[0]))
    for row, values in zip(taps, hidden, strict=True):
        scale = np.abs(values).max() / 32639
        want = [int(np.rint(values[i] / scale)) for i in where]
        assert row.tobytes() == struct.pack("<d32h", scale, *want)


def test_chunks_batches_and_kernels_give_the_same_taps(model: Path) -> None:
    want = whole(ExactShardEngine.load(model, 0, 8)).tobytes()
    engine = ExactShardEngine.load(model, 0, 8, kernel=Kernel.FLOAT64)
    first, second = engine.new_sequence(), engine.new_sequence()
    rows: list[bytes] = []
    for start, end in pairwise((0, 5, 6, 7, 12)):
        other = StepItem(second, stream_ids(f"other {start}", 3))
        rows.append(engine.step_with_taps([other, StepItem(first, PROMPT[start:end])])[1].taps.tobytes())
    assert b"".join(rows) == want


def test_states_are_those_of_a_plain_step_and_every_range_has_its_own_taps(model: Path) -> None:
    engine = ExactShardEngine.load(model, 0, 8)
    plain = engine.step([StepItem(engine.new_sequence(), PROMPT)])[0]
    tapped = engine.step_with_taps([StepItem(engine.new_sequence(), PROMPT)])[0]
    np.testing.assert_array_equal(tapped.states, plain)
    assert tapped.taps.shape == (len(PROMPT), TAP_BYTES)
    assert whole(ExactShardEngine.load(model, 0, 7)).tobytes() != tapped.taps.tobytes()
    assert engine.step_with_taps([]) == []


def test_coordinates_follow_from_the_weights_root_and_the_layer() -> None:
    root = keccak(b"weights")
    found = tap_coordinates(root, 7, 704)
    numbers = b"".join(keccak(b"EFL.tap.1" + root + struct.pack(">II", 7, i)) for i in range(8))
    assert found == tuple(n % 704 for n in struct.unpack(">32Q", numbers))
    assert found != tap_coordinates(root, 6, 704)
    assert found != tap_coordinates(keccak(b"other"), 7, 704)

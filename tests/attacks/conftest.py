"""Both published models and honest jobs over them, once for all attack tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from efedllm_bench.attacks.lab import Lab, prompts
from efedllm_bench.cheats.catalog import NumericProfile
from tests.attacks.measured import published, tolerance

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _lab(profile: NumericProfile, work: Path) -> Lab:
    lab = Lab(profile, published(profile, work, tolerance()), work)
    lab.jobs = lab.generate(prompts(2, 40), 24)
    return lab


@pytest.fixture(scope="session")
def float_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return _lab("float", tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="session")
def exact_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return _lab("exact", tmp_path_factory.mktemp("exact"))


@pytest.fixture(params=["exact", "float"])
def lab(request: pytest.FixtureRequest) -> Lab:
    found = request.getfixturevalue(f"{request.param}_lab")
    assert isinstance(found, Lab)
    return found

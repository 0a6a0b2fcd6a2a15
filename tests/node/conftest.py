from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from efedllm_deploy.profile import ClockSection, Profile
from tests.live_network import LiveNetwork
from tests.model_fixtures import bundled_model, checkpoint, published
from tests.node.node_kit import Lab, open_lab

__all__ = ["bundled_model", "checkpoint", "published"]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Long enough that no test falls out of the part of an epoch it went to, however slow the machine.
EPOCH = ClockSection(epoch_length=1200)


@pytest.fixture(scope="session")
def unhurried(ganache: str, tmp_path_factory: pytest.TempPathFactory) -> LiveNetwork:
    """The local profile with long epochs, deployed on Ganache."""
    profile = Profile.load("local").model_copy(update={"clock": EPOCH})
    out = tmp_path_factory.mktemp("unhurried")
    return LiveNetwork.deploy(ganache, profile, out)


@pytest_asyncio.fixture
async def lab(unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Lab]:
    """A published model on a chain."""
    async with open_lab(unhurried, published("llama"), tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def pair(lab: Lab) -> Lab:
    """Two nodes that share the model's layers."""
    await lab.start_route()
    return lab

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.live_network import LiveNetwork
from tests.model_fixtures import bundled_model, checkpoint, published
from tests.node.node_kit import Lab, open_lab

__all__ = ["bundled_model", "checkpoint", "published"]

os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_lab(
    unhurried: LiveNetwork, published: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """A lab for all tests of a module, which run in the module's event loop and must not use `lab` as well."""
    async with open_lab(unhurried, published("llama"), tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_pair(shared_lab: Lab) -> Lab:
    """Two nodes that share the model's layers, for tests that only speak the protocol."""
    await shared_lab.start_route()
    return shared_lab

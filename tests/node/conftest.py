from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from efedllm.chain import Chain
from tests.live_network import LiveNetwork
from tests.model_fixtures import bundled_model, checkpoint, published
from tests.node.node_kit import Lab

__all__ = ["bundled_model", "checkpoint", "published"]

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest_asyncio.fixture
async def lab(
    deployed: LiveNetwork, chain: Chain, published: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[Lab]:
    """A published model on a chain of its own; every node started in it is stopped afterwards."""
    made = await Lab.make(deployed, chain, published("llama"), tmp_path)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def pair(lab: Lab) -> Lab:
    """Two nodes that share the model's layers."""
    await lab.start(1, (0, 3))
    await lab.start(2, (3, 8))
    return lab

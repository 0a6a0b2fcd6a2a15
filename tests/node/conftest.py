from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.deployer import deploy_contracts
from deploy.local import dev_account
from deploy.profile import Clock, Profile
from tests.live_network import LiveNetwork
from tests.model_fixtures import bundled_model, checkpoint, published
from tests.node.node_kit import Lab

__all__ = ["bundled_model", "checkpoint", "published"]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Long enough that no test falls out of the part of an epoch it went to, however slow the machine.
EPOCH = Clock(epoch_length=1200)


@pytest.fixture(scope="session")
def unhurried(ganache: str, tmp_path_factory: pytest.TempPathFactory) -> LiveNetwork:
    """The local profile with long epochs, deployed on Ganache."""
    profile = Profile.load("local").model_copy(update={"clock": EPOCH})
    out = tmp_path_factory.mktemp("unhurried")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, deploy_contracts(ganache, dev_account(), profile, out)).result()
    return LiveNetwork(ganache, done.deployment, done.path)


@pytest_asyncio.fixture
async def lab(unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Lab]:
    """A published model on a chain; what is started in it is stopped afterwards, what it did on chain is undone."""
    async with await unhurried.connect() as chain:
        snapshot = await chain.rpc.request("evm_snapshot")
        # Ganache keeps the time that an earlier test skipped, but shows it only in the next block.
        await unhurried.clock(chain).mine()
        made = await Lab.make(unhurried, chain, published("llama"), tmp_path)
        yield made
        await made.close()
        await chain.rpc.request("evm_revert", [snapshot])


@pytest_asyncio.fixture
async def pair(lab: Lab) -> Lab:
    """Two nodes that share the model's layers."""
    await lab.start(1, (0, 3))
    await lab.start(2, (3, 8))
    return lab

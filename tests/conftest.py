"""Local chains for every test package: started once a session, rolled back after each test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from efedllm.chain import Chain
from efedllm_deploy.chain_programs import Kind
from efedllm_deploy.local import chain_command, free_port
from efedllm_deploy.process import tie_to_parent
from efedllm_deploy.profile import ClockSection, Profile
from tests.live_network import LiveNetwork

_START_SECONDS = 60.0


def _answers(url: str) -> bool:
    request = urllib.request.Request(
        url,
        data=b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}',
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _chain_process(kind: Kind, log: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            chain_command(kind, port),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=tie_to_parent(os.getpid()),
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{kind} did not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def ganache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """RPC address of a Ganache without a block ticker: blocks come with transactions or evm_mine."""
    yield from _chain_process("ganache", tmp_path_factory.mktemp("ganache") / "log")


@pytest.fixture(scope="session")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """RPC address of an Anvil without a block ticker."""
    yield from _chain_process("anvil", tmp_path_factory.mktemp("anvil") / "log")


@pytest.fixture(scope="session")
def _deployment(ganache: str, tmp_path_factory: pytest.TempPathFactory) -> LiveNetwork:
    out = tmp_path_factory.mktemp("deployments")
    return LiveNetwork.deploy(ganache, Profile.load("local"), out)


@pytest.fixture(scope="session")
def unhurried(ganache: str, tmp_path_factory: pytest.TempPathFactory) -> LiveNetwork:
    """The local profile on Ganache. Epochs are so long that no test leaves its part of one, however slow it runs."""
    profile = Profile.load("local").model_copy(update={"clock": ClockSection(epoch_length=1200)})
    return LiveNetwork.deploy(ganache, profile, tmp_path_factory.mktemp("unhurried"))


@pytest_asyncio.fixture
async def deployed(_deployment: LiveNetwork) -> AsyncIterator[LiveNetwork]:
    """The local profile deployed on Ganache; whatever the test does on chain is undone afterwards."""
    async with await _deployment.connect(None) as chain:
        snapshot = await chain.rpc.request("evm_snapshot")
        yield _deployment
        await chain.rpc.request("evm_revert", [snapshot])


@pytest_asyncio.fixture
async def chain(deployed: LiveNetwork) -> AsyncIterator[Chain]:
    """Connection of the deployer's account."""
    async with await deployed.connect() as connection:
        yield connection

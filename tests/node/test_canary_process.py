"""Planting by command at a node process that is killed, and opening by the next one, with and without money for gas."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from structlog.testing import capture_logs

from efedllm.chain import keystore
from efedllm.commitments.canary import canary_salt
from efedllm_node.app import NodeApp
from efedllm_node.canaries.opener import opening
from efedllm_node.canaries.store import CanaryStore, OpeningRecord
from tests.live_network import LiveNetwork
from tests.node.node_kit import PASSWORD, Lab, open_lab
from tests.node.test_lifecycle import ROOT, spawn

PLANTER = 8


@pytest_asyncio.fixture
async def bundled_lab(unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Lab]:
    """A model with a tokenizer, as clients need it."""
    async with open_lab(unhurried, published("bundled"), tmp_path) as lab:
        yield lab


async def plant(lab: Lab, node: str, *more: str) -> tuple[int | None, dict[str, Any], str]:
    """`efedllm canary plant` with the wallet PLANTER: exit code, what it printed, and what it said beside."""
    wallet, password = lab.directory / "wallet.json", lab.directory / "wallet-password"
    if not wallet.exists():
        keystore.create(wallet, PASSWORD, light=True, private_key=bytes(lab.live.account(PLANTER).key))
        password.write_text(PASSWORD)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "efedllm_client", "canary", "plant", "--json", "--node", node, "--max-new-tokens", "4"),
        *("--rpc", lab.live.rpc_url, "--deployment", str(lab.live.path), "--keystore", str(wallet)),
        *("--password-file", str(password), "--home", str(lab.directory / "wallet-home"), *more),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("EFEDLLM_")},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, json.loads(out), err.decode()


async def opened(app: NodeApp) -> list[dict[str, Any]]:
    return [event.args for event in await app.chain.events("CanaryRegistry", "CanaryOpened")]


async def test_planted_by_command_killed_and_opened_by_the_next_process(bundled_lab: Lab) -> None:
    lab, clock = bundled_lab, bundled_lab.live.clock(bundled_lab.chain)
    planter = lab.live.account(PLANTER).address
    await lab.chain.send("EfedToken", "transfer", planter, 10**19)
    config = await lab.config(1, (0, 8))
    epoch = (await lab.chain.now()).epoch + 1
    await clock.skip_to(epoch, 0.01)
    process = await spawn(config, "--canary-client", planter)
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 120))
    code, printed, said = await plant(lab, ready["address"], "--prompt", "def add(a, b):", "--prompt", "import sys")
    assert code == 0, (printed, said)
    assert "2 of 2" in said
    assert [(item["hop"], item["tokens"], item["epoch"]) for item in printed["planted"]] == [(0, 4, epoch)] * 2
    process.send_signal(signal.SIGKILL)
    await process.wait()

    # Without the flag nobody plants any more; what was planted is kept.
    app = await lab.launch(config)
    code, printed, _ = await plant(lab, app.address, "--prompt", "x = 1")
    assert (code, printed["error"]["code"]) == (1, "canary-refused")
    assert await lab.post_batches() == epoch
    posted = await CanaryStore(app.store.engine).posted(epoch)
    assert len(posted) == 2
    for item in posted:
        salt = canary_salt(item.commit.job_id, 0, item.canary.consent, item.canary.nonce)
        assert (item.salt, item.leaves.index(item.leaf)) == (salt, item.index)
        assert item.leaf == await app.chain.call("CanaryRegistry", "leafOf", opening(item))

    await clock.skip_to(epoch + 1, 0.05)
    await lab.chain.send("SeatRegistry", "armSeed", epoch)
    await clock.mine(3)
    await lab.chain.send("SeatRegistry", "fixSeed", epoch)
    await app.duties.tick()
    assert await opened(app) == []
    await clock.skip_to_phase(epoch + 1, 1)
    # Without money for gas: said, counted, and tried again.
    balance = await app.chain.rpc.request("eth_getBalance", [app.address, "latest"])
    await app.chain.rpc.request("evm_setAccountBalance", [app.address, "0x0"])
    with capture_logs() as lines:
        await app.duties.tick()
    (entry,) = [entry for entry in lines if entry["event"] == "canaries not opened"]
    assert (entry["log_level"], entry["code"], entry["tries_left"]) == ("error", "insufficient-funds", 4)
    assert "gas" in entry["hint"]
    assert await CanaryStore(app.store.engine).opening(epoch) == OpeningRecord(None, 1)
    await app.chain.rpc.request("evm_setAccountBalance", [app.address, balance])
    for _ in range(3):
        await app.duties.tick()
    (found,) = await opened(app)
    assert (found["node"], found["epoch"], found["leaves"]) == (
        app.address,
        epoch,
        sorted(item.leaf for item in posted),
    )
    # A reorganisation could take it back as long as the phase lasts.
    assert await CanaryStore(app.store.engine).opening(epoch) == OpeningRecord(None, 1)
    await clock.skip_to_phase(epoch + 1, 2)
    await app.duties.tick()
    assert await CanaryStore(app.store.engine).opening(epoch) == OpeningRecord("opened", 1)

"""A node process that signs two commitments for a job, beside an honest node, real verifiers and a real client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from efedllm.chain import keystore
from efedllm.chain.amounts import WEI
from efedllm.chain.disputes import FOLDER, EvidenceFolder, read_proof
from efedllm.chain.ledger import read_ledger
from efedllm.errors import EfedError
from efedllm.logs import get_logger
from efedllm.settings import Settings
from efedllm_client.api import Client
from efedllm_client.jobs.options import RouteOptions
from efedllm_verifier.app import Verifier, open_verifier
from efedllm_verifier.config import VerifierConfig
from efedllm_verifier.metrics import Health, Metrics
from tests.live_network import LiveNetwork
from tests.node.node_kit import PASSWORD, Lab, eventually, open_lab
from tests.node.test_lifecycle import ROOT, spawn

CHEAT, HONEST, ACCUSER, BUYER = 1, 2, 7, 8
STAKE = 200 * WEI


@pytest_asyncio.fixture
async def lab(unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Lab]:
    """A model with a tokenizer, as clients need it."""
    async with open_lab(unhurried, published("bundled"), tmp_path) as made:
        yield made


def wallet(lab: Lab, index: int) -> tuple[Path, Path]:
    """Keystore and password file of a development account."""
    path, password = lab.directory / f"wallet-{index}.json", lab.directory / "password"
    if path.exists():
        return path, password
    keystore.create(path, PASSWORD, light=True, private_key=bytes(lab.live.account(index).key))
    password.write_text(PASSWORD)
    return path, password


async def verifier(stack: AsyncExitStack, lab: Lab, index: int) -> Verifier:
    """Takes a seat, which counts from the next epoch on."""
    account = lab.live.account(index)
    await lab.chain.contracts.efed_token.transfer(account.address, STAKE)
    config = VerifierConfig(
        rpc_url=lab.live.rpc_url,
        deployment=lab.live.path,
        keystore=wallet(lab, index)[0],
        password=PASSWORD,
        home=lab.directory / f"verifier-{index}",
        models=(str(lab.model_dir),),
    )
    opened = open_verifier(config, Metrics(), Health(60), get_logger("test"))
    made, _ = await stack.enter_async_context(opened)
    stack.push_async_callback(made.cancel_audits)
    return made


async def test_two_commitments_are_found_proven_and_paid_and_the_honest_keep_all(lab: Lab) -> None:
    """One of two jobs is collected on by a person with the client's file, the other one by the verifier that audits."""
    chain, clock = lab.chain, lab.live.clock(lab.chain)
    accuser, buyer = lab.live.account(ACCUSER).address, lab.live.account(BUYER)
    async with AsyncExitStack() as stack:
        auditor = await verifier(stack, lab, ACCUSER)
        cheat = await spawn(await lab.config(CHEAT, (0, 4)), module="tests.node.equivocator", layers="0:4")
        stack.push_async_callback(cheat.wait)
        stack.callback(cheat.kill)
        assert cheat.stdout is not None
        liar = json.loads(await asyncio.wait_for(cheat.stdout.readline(), 120))["address"]
        honest = await lab.start(HONEST, (4, 8))
        epoch = await lab.begin_epoch()

        # A client buys; what it is given by the two hops does not fit, and it keeps why.
        await chain.contracts.efed_token.transfer(buyer.address, 100 * WEI)
        home = lab.directory / "client"
        settings = Settings(home=home, rpc_url=lab.live.rpc_url, deployment=lab.live.path)
        client = await stack.enter_async_context(Client.connect(settings, account=buyer))
        for _ in range(2):
            await buy(client)
            assert client.report is not None
            (fault,) = client.report.faults
            assert (fault["kind"], fault["guilty"]) == ("equivocation", [liar])
            assert (home / FOLDER / fault["evidence"]).is_file()
        evidence, other = EvidenceFolder(home / FOLDER).open()
        assert read_proof(evidence).differing == read_proof(other).differing == ("in_root",)

        # Anybody may show it, once.
        before = await chain.token_balance(buyer.address)
        code, shown = await prove(lab, home, evidence)
        assert (code, shown["node"], shown["slashed_wei"], shown["reward_wei"]) == (0, liar, *lost(STAKE))
        assert await chain.token_balance(buyer.address) == before + shown["reward_wei"]
        code, shown = await prove(lab, home, evidence)
        assert (code, shown["error"]["code"]) == (1, "revert:AlreadyProven")

        # Both nodes post, and the verifier audits the epoch as any other.
        await clock.skip_to(epoch, 0.72)
        for _ in range(2):
            await honest.epoch_loop.tick()

        async def posted() -> bool:
            return {batch.node for batch in await chain.batches(epoch)} == {liar, honest.address}

        await eventually(posted, "both batches are on chain", 60)
        await clock.skip_to_phase(epoch + 1, 0, 0.02)
        before = await chain.token_balance(accuser)

        async def proven() -> bool:
            await auditor.tick()
            await asyncio.wait_for(auditor.wait_audits(), 120)
            await clock.mine()
            return len(await chain.history("DisputeGame", "EquivocationProven")) == 2

        await eventually(proven, "the verifier proves the other one", 120)
        event = (await chain.history("DisputeGame", "EquivocationProven"))[-1].args
        assert (event["node"], event["accuser"], event["jobId"]) == (liar, accuser, read_proof(other).job_id)
        assert (event["slashed"], event["reward"]) == lost(STAKE // 2)
        assert await chain.token_balance(accuser) == before + event["reward"]
        guilty, innocent = await chain.node(liar), await chain.node(honest.address)
        assert (guilty.stake_active, guilty.standing, guilty.offences) == (STAKE // 4, 0, 2)
        assert (innocent.stake_active, innocent.offences, innocent.jailed_until) == (STAKE, 0, 0)
        assert innocent.standing != 0
        # Both cases are settled; ticking on sends nothing more.
        await auditor.tick()
        folder = EvidenceFolder(lab.directory / f"verifier-{ACCUSER}" / FOLDER)
        assert folder.open() == []
        assert len(list(folder.path.glob("settled/*.json"))) == 2
        assert len(await chain.history("DisputeGame", "EquivocationProven")) == 2
        assert (await read_ledger(chain)).problems == []

        # Nobody is routed over the node any more. In its place an honest one serves; the other never noticed.
        with pytest.raises(EfedError) as caught:
            await buy(client)
        assert caught.value.code == "layers-not-covered"
        await lab.start(3, (0, 4))
        await lab.begin_epoch()
        await buy(client)
        assert client.report is not None
        assert client.report.receipts_ok


async def buy(client: Client) -> None:
    async for _ in client.generate("def add(a, b):", max_tokens=4, route=RouteOptions(explore=0.0)):
        pass


def lost(stake: int) -> tuple[int, int]:
    """What a case costs and pays, wei."""
    return stake // 2, stake * 3 // 20


async def prove(lab: Lab, home: Path, evidence: Path) -> tuple[int | None, dict[str, Any]]:
    """`efedllm dispute equivocation` with the wallet BUYER: exit code, and the object it prints."""
    key, password = wallet(lab, BUYER)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "efedllm_client", "dispute", "equivocation", "--json", "--evidence", str(evidence)),
        *("--rpc", lab.live.rpc_url, "--deployment", str(lab.live.path), "--home", str(home)),
        *("--keystore", str(key), "--password-file", str(password)),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("EFEDLLM_")},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert out, err.decode()
    return process.returncode, json.loads(out)

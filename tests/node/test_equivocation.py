"""A node process that signs two commitments for a job, beside an honest node, real verifiers and a real client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from client.api import Client
from efedllm.chain import keystore
from efedllm.chain.amounts import WEI
from efedllm.chain.disputes import FOLDER, EvidenceFolder, read_proof
from efedllm.errors import EfedError
from efedllm.logs import get_logger
from efedllm.settings import Settings
from tests.live_network import LiveNetwork
from tests.node.node_kit import PASSWORD, Lab, eventually, open_lab
from tests.node.test_lifecycle import ROOT, spawn
from verifier.app import Verifier, open_verifier
from verifier.config import VerifierConfig
from verifier.metrics import Health, Metrics

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
    keystore.create(path, PASSWORD, light=True, private_key=bytes(lab.live.account(index).key))
    password.write_text(PASSWORD)
    return path, password


async def command(*arguments: str) -> tuple[int | None, dict[str, Any]]:
    """`efedllm ... --json`: exit code, and the object it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", *arguments, "--json"),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("EFEDLLM_")},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert out, err.decode()
    return process.returncode, json.loads(out)


async def verifier(stack: AsyncExitStack, lab: Lab, index: int) -> Verifier:
    """Takes a seat, which counts from the next epoch on."""
    account = lab.live.account(index)
    await lab.chain.send("EfedToken", "transfer", account.address, STAKE)
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
    chain, clock = lab.chain, lab.live.clock(lab.chain)
    accuser = lab.live.account(ACCUSER).address
    async with AsyncExitStack() as stack:
        auditor = await verifier(stack, lab, ACCUSER)
        cheat = await spawn(await lab.config(CHEAT, (0, 4)), module="tests.node.equivocator", layers="0:4")
        assert cheat.stdout is not None
        ready = json.loads(await asyncio.wait_for(cheat.stdout.readline(), 120))
        honest = await lab.start(HONEST, (4, 8))
        epoch = await lab.begin_epoch()

        # A client buys; what it is given by the two hops does not fit, and it keeps why.
        buyer = lab.live.account(BUYER)
        await chain.send("EfedToken", "transfer", buyer.address, 100 * WEI)
        home = lab.directory / "client"
        settings = Settings(home=home, rpc_url=lab.live.rpc_url, deployment=lab.live.path)
        client = await stack.enter_async_context(Client.connect(settings, account=buyer))
        async for _ in client.generate("def add(a, b):", max_tokens=4, explore=0.0):
            pass
        assert client.report is not None
        (fault,) = client.report.faults
        assert (fault["kind"], fault["guilty"]) == ("equivocation", [ready["address"]])
        (evidence,) = EvidenceFolder(home / FOLDER).open()
        assert evidence.name == fault["evidence"]
        code, shown = await command("dispute", "check", str(evidence))
        assert (code, shown["proof"], shown["node"], shown["hop"]) == (0, True, ready["address"], 0)
        assert shown["differ_in"] == ["in_root"]

        # Both nodes post, and the verifier audits the epoch as any other.
        await clock.skip_to(epoch, 0.72)
        for _ in range(2):
            await honest.duties.tick()

        async def posted() -> bool:
            return {batch.node for batch in await chain.batches(epoch)} == {ready["address"], honest.address}

        await eventually(posted, "both batches are on chain", 60)
        await clock.skip_to_phase(epoch + 1, 0, 0.02)
        before = await chain.token_balance(accuser)

        async def proven() -> bool:
            await auditor.tick()
            await asyncio.wait_for(auditor.wait_audits(), 120)
            await clock.mine()
            return bool(await chain.history("DisputeGame", "EquivocationProven"))

        await eventually(proven, "the verifier proves it", 120)
        (event,) = [event.args for event in await chain.history("DisputeGame", "EquivocationProven")]
        assert (event["node"], event["accuser"]) == (ready["address"], accuser)
        assert (event["slashed"], event["reward"]) == (STAKE // 2, STAKE * 3 // 20)
        assert await chain.token_balance(accuser) == before + STAKE * 3 // 20
        guilty, innocent = await chain.node(ready["address"]), await chain.node(honest.address)
        assert (guilty.stake_active, guilty.standing, guilty.offences) == (STAKE // 2, 0, 1)
        assert (innocent.stake_active, innocent.offences, innocent.jailed_until) == (STAKE, 0, 0)
        assert innocent.standing != 0
        # The proof is settled; ticking on sends nothing more.
        folder = EvidenceFolder(lab.directory / f"verifier-{ACCUSER}" / FOLDER)
        assert folder.open() == []
        assert {read_proof(path).node for path in folder.path.glob("settled/*.json")} == {ready["address"]}
        await auditor.tick()
        assert len(await chain.history("DisputeGame", "EquivocationProven")) == 1

        # Nobody is routed over the node any more, and the client's own proof comes too late.
        with pytest.raises(EfedError) as caught:
            async for _ in client.generate("def add(a, b):", max_tokens=4, explore=0.0, fresh_session=True):
                pass
        assert caught.value.code == "layers-not-covered"
        key, password = wallet(lab, BUYER)
        code, shown = await command(
            *("dispute", "equivocation", "--evidence", str(evidence), "--rpc", lab.live.rpc_url),
            *("--deployment", str(lab.live.path), "--keystore", str(key), "--password-file", str(password)),
            *("--home", str(home)),
        )
        assert (code, shown["error"]["code"]) == (1, "revert:AlreadyProven")
        assert (await chain.ledger()).problems == []

        # In its place an honest node serves, and the other one never noticed.
        await lab.start(3, (0, 4))
        await lab.begin_epoch()
        async for _ in client.generate("def add(a, b):", max_tokens=4, explore=0.0):
            pass
        assert client.report.receipts_ok
        cheat.kill()
        await cheat.wait()


async def test_a_person_collects_on_what_a_client_found(lab: Lab) -> None:
    """Without any verifier: the file is all that it takes."""
    cheat = await spawn(await lab.config(CHEAT, (0, 4)), module="tests.node.equivocator", layers="0:4")
    assert cheat.stdout is not None
    ready = json.loads(await asyncio.wait_for(cheat.stdout.readline(), 120))
    await lab.start(HONEST, (4, 8))
    buyer, home = lab.live.account(BUYER), lab.directory / "client"
    await lab.chain.send("EfedToken", "transfer", buyer.address, 100 * WEI)
    settings = Settings(home=home, rpc_url=lab.live.rpc_url, deployment=lab.live.path)
    async with Client.connect(settings, account=buyer) as client:
        async for _ in client.generate("x = 1", max_tokens=2, explore=0.0):
            pass
    (evidence,) = EvidenceFolder(home / FOLDER).open()
    key, password = wallet(lab, BUYER)
    where = ("--rpc", lab.live.rpc_url, "--deployment", str(lab.live.path), "--home", str(home))
    account = ("--keystore", str(key), "--password-file", str(password))
    # Against somebody else the signatures prove nothing.
    proof = read_proof(evidence)
    (lab.directory / "wrong.json").write_text(json.dumps(replace(proof, node=buyer.address).to_json()))
    exit_code, shown = await command(
        "dispute", "equivocation", *where, *account, "--evidence", str(lab.directory / "wrong.json")
    )
    assert (exit_code, shown["error"]["code"]) == (1, "revert:NotSignedByNode")
    before = await lab.chain.token_balance(buyer.address)
    exit_code, shown = await command("dispute", "equivocation", *where, *account, "--evidence", str(evidence))
    assert exit_code == 0, shown
    assert (shown["node"], shown["hop"]) == (ready["address"], 0)
    assert (shown["slashed_wei"], shown["reward_wei"]) == (STAKE // 2, STAKE * 3 // 20)
    assert await lab.chain.token_balance(buyer.address) == before + STAKE * 3 // 20
    cheat.kill()
    await cheat.wait()

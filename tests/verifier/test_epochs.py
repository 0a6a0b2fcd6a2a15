"""Whole epochs on real contracts: honest work earns trust, cheats are slashed, crashes neither lose nor double."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from efedllm.chain.amounts import WEI
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import Voucher
from efedllm.commitments.signing import Signer
from efedllm.errors import ChainError, ConfigError
from efedllm_verifier.app import store_path
from efedllm_verifier.store import AttestationStore
from efedllm_verifier.verdict import Verdict
from tests.chain.drop_proxy import DropProxy
from tests.verifier.audit_lab import PROMPT, RANGES, Trace, as_int8, decode_route, load, tamper
from tests.verifier.audit_network import (
    NODES,
    VERIFIERS,
    Network,
    committed,
    drive,
    enter_verifier,
    judge_epoch,
    own_contracts,
    revealed,
    rolled_back,
    staked_network,
    verifiers,
)
from tests.verifier.epoch_kit import NEW, WARM, CrashError, crash_at, start_process, verdicts, work
from tests.verifier.served_node import Lies

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def honest(published: Path) -> Trace:
    return decode_route([load(published, *layers) for layers in RANGES], PROMPT, NEW, WireDtype.F32, WARM)


@pytest.fixture(scope="module")
def cheated(published: Path) -> Trace:
    """The middle node computes with int8 weights."""
    engines = [load(published, *layers) for layers in RANGES]
    engines[1] = tamper(engines[1], as_int8)
    return decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def staked(ganache: str, tmp_path_factory: pytest.TempPathFactory, published: Path) -> AsyncIterator[Network]:
    home = tmp_path_factory.mktemp("network")
    async with own_contracts(ganache, home) as live, staked_network(live, home, published) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def network(staked: Network, tmp_path: Path) -> AsyncIterator[Network]:
    async with rolled_back(staked, tmp_path) as made:
        yield made


async def standing(network: Network, hop: int) -> tuple[int, int]:
    """(standing, trust in ppm) of a node."""
    node = network.node(hop)
    return (
        await network.admin.contracts.verifier_committee.standing_of(node),
        await network.admin.contracts.verifier_committee.trust_of(node),
    )


async def test_a_neighbour_that_changes_its_key_before_the_batches_hurts_nobody(
    network: Network, honest: Trace
) -> None:
    async with verifiers(network) as running:
        epoch = (await network.now()).epoch + 1
        await network.clock.skip_to(epoch, 0.1)
        await network.serve([network.job(honest, epoch, WARM, PROMPT, NEW)])
        chain = network.chains[NODES[0]]
        root, url = network.manifest.shard_root(*RANGES[0]), network.served[0].url
        await chain.contracts.node_registry.retire()
        await chain.contracts.node_registry.register(
            network.model_id, *RANGES[0], 1000, Signer(bytes(31) + b"\7").address, root, url
        )
        await network.post({})
        await judge_epoch(network, running, epoch)
        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(10, 0, False)} for hop in range(3)}


async def test_honest_nodes_earn_trust_and_verifiers_are_paid_once(network: Network, honest: Trace) -> None:
    async with verifiers(network) as running:
        epoch = await work(network, honest)
        voucher = Voucher(network.key.session_id(*network.admin.escrow_domain), 10 * WEI, 48, bytes(32))
        signature = network.client.sign(voucher.digest(*network.admin.escrow_domain))
        await network.chains[NODES[0]].contracts.session_escrow.settle(network.key, voucher, signature)
        await judge_epoch(network, running, epoch)
        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(10, 0, False)} for hop in range(3)}
        for hop in range(3):
            assert (await standing(network, hop))[1] > 300_000
        for index in VERIFIERS:
            assert await network.admin.contracts.verifier_committee.points_of(epoch, network.chain_address(index)) == 30
        await network.clock.skip_to(epoch + 2, 0.1)
        for _ in range(2):
            for verifier in running:
                await verifier.tick()
        claims = await network.admin.history("RewardPool", "RewardClaimed")
        paid = {event.args["account"]: event.args["amount"] for event in claims}
        assert set(paid) == {network.chain_address(index) for index in VERIFIERS}
        assert len(claims) == 3
        assert len(set(paid.values())) == 1
        assert min(paid.values()) > 0


async def test_a_cheap_node_is_slashed_and_only_that_one(network: Network, cheated: Trace) -> None:
    async with verifiers(network) as running:
        epoch = await work(network, cheated)
        stakes = [(await network.admin.node(network.node(hop))).stake_active for hop in range(3)]
        await judge_epoch(network, running, epoch)
        said = await verdicts(network, epoch)
        assert said[network.node(1)] == {Verdict(0, 10, True)}
        assert said[network.node(0)] == said[network.node(2)] == {Verdict(10, 0, False)}
        after = [(await network.admin.node(network.node(hop))).stake_active for hop in range(3)]
        assert after == [stakes[0], stakes[1] * 8 // 10, stakes[2]]
        assert await standing(network, 1) == (0, 0)
        reports = {index: network.home / f"verifier{index}" / "reports" / str(epoch) for index in VERIFIERS}
        found = json.loads((reports[VERIFIERS[0]] / f"{network.node(1)}.json").read_text())
        assert found["leaves"][0]["code"] == "wrong-output"
        assert found["leaves"][0]["statistic"] > 30
        # The evidence on chain is the hash of each verifier's report on disk.
        for event in await network.admin.history("VerifierCommittee", "Revealed"):
            index = next(i for i in VERIFIERS if network.chain_address(i) == event.args["verifier"])
            for node, evidence in zip(event.args["nodes"], event.args["evidence"], strict=True):
                assert keccak((reports[index] / f"{node}.json").read_bytes()) == evidence


@pytest.mark.parametrize(
    ("liars", "failed"), [((1,), ()), ((0, 1, 2), (0, 1, 2))], ids=["the neighbours have it", "nobody has it"]
)
async def test_withheld_bytes_come_from_the_neighbours_or_fail_without_slashing(
    network: Network, honest: Trace, liars: tuple[int, ...], failed: tuple[int, ...]
) -> None:
    async with verifiers(network) as running:
        epoch = await work(network, honest, {hop: Lies(boundaries=True) for hop in liars})
        await judge_epoch(network, running, epoch)
        said = await verdicts(network, epoch)
        for hop in range(3):
            expected = Verdict(0, 10, False) if hop in failed else Verdict(10, 0, False)
            assert said[network.node(hop)] == {expected}


async def test_a_batch_that_does_not_match_its_root_fails(network: Network, honest: Trace) -> None:
    def other_salt(leaf: dict[str, object]) -> None:
        leaf["salt"] = "0x" + "00" * 32

    lies = {0: Lies(batches=True), 1: Lies(), 2: Lies(edit_leaf=other_salt)}
    async with verifiers(network) as running:
        epoch = await work(network, honest, lies, {1: keccak(b"other")})
        await judge_epoch(network, running, epoch)
        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(0, 10, False)} for hop in range(3)}


async def test_a_job_nobody_pays_for_fails(network: Network, honest: Trace) -> None:
    async with verifiers(network) as running:
        epoch = (await network.now()).epoch + 1
        await network.clock.skip_to(epoch, 0.1)
        unpaid = replace(network, key=replace(network.key, nonce=1))
        await network.serve([unpaid.job(honest, epoch, WARM, PROMPT, NEW)])
        await network.post({})
        await judge_epoch(network, running, epoch)
        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(0, 10, False)} for hop in range(3)}


async def test_without_weights_a_verifier_abstains(network: Network, honest: Trace) -> None:
    async with AsyncExitStack() as stack:
        running = []
        for index in VERIFIERS:
            running.append(await enter_verifier(stack, network.config(index, models=index != VERIFIERS[0])))
        epoch = await work(network, honest)
        await network.clock.skip_to_phase(epoch + 1, 0, 0.02)
        await drive(network, running, lambda: committed(network, epoch, VERIFIERS[1:]))
        await network.clock.skip_to_phase(epoch + 1, 0, 0.9)
        await running[0].tick()
        assert not await committed(network, epoch, VERIFIERS[:1])
        done, abstained = await running[0]._store.verdicts(epoch)
        assert done == []
        assert set(abstained) == {network.node(hop) for hop in range(3)}


@pytest.mark.parametrize("fn", ["commit", "reveal"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_a_crash_around_a_transaction_neither_doubles_nor_loses_it(
    network: Network, honest: Trace, fn: str, before: bool
) -> None:
    index = VERIFIERS[0]
    async with verifiers(network, VERIFIERS[1:]) as others, AsyncExitStack() as stack:
        first = await enter_verifier(stack, network.config(index))
        epoch = await work(network, honest)
        crash_at(first, fn, before=before)
        await network.clock.skip_to_phase(epoch + 1, 0, 0.02)
        if fn == "reveal":
            await drive(network, [first, *others], lambda: committed(network, epoch))
            await network.clock.skip_to_phase(epoch + 1, 1)
        with pytest.raises(CrashError):
            await drive(network, [first, *others], lambda: revealed(network, epoch))
        kept = await first._store.attestation(epoch)
        assert kept is not None
        await stack.aclose()

        second = await enter_verifier(stack, network.config(index))
        await drive(network, [second, *others], lambda: committed(network, epoch))
        await network.clock.skip_to_phase(epoch + 1, 1)
        await drive(network, [second, *others], lambda: revealed(network, epoch))
        assert await second._store.attestation(epoch) == kept
        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(10, 0, False)} for hop in range(3)}
        me = network.chain_address(index)
        for name in ("Committed", "Revealed"):
            events = await network.admin.history("VerifierCommittee", name)
            assert len([event for event in events if event.args["verifier"] == me]) == 1


async def test_a_restart_inside_the_audits_repeats_only_what_is_missing(network: Network, honest: Trace) -> None:
    index = VERIFIERS[0]
    async with verifiers(network, VERIFIERS[1:]) as others, AsyncExitStack() as stack:
        first = await enter_verifier(stack, network.config(index))
        epoch = await work(network, honest)
        await network.clock.skip_to_phase(epoch + 1, 0, 0.02)

        async def seeded() -> bool:
            return await network.admin.seed(epoch) is not None

        await drive(network, [first, *others], seeded)
        await first.tick()
        # Audits are running: end here.
        await stack.aclose()
        second = await enter_verifier(stack, network.config(index))
        await drive(network, [second, *others], lambda: committed(network, epoch))
        done, _ = await second._store.verdicts(epoch)
        assert {verdict.node for verdict in done} == {network.node(hop) for hop in range(3)}


async def test_while_the_chain_is_away_nobody_is_accused(network: Network, honest: Trace) -> None:
    index = VERIFIERS[0]
    proxy = DropProxy(network.live.rpc_url)
    await proxy.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(proxy.stop)
        config = replace(network.config(index), rpc_url=proxy.url, rpc_budget=0.3)
        verifier = await enter_verifier(stack, config)
        epoch = await work(network, honest)
        await network.clock.skip_to_phase(epoch + 1, 0, 0.02)

        async def seeded() -> bool:
            return await network.admin.seed(epoch) is not None

        await drive(network, [verifier], seeded)
        await verifier.tick()
        proxy.refuse()
        await verifier.wait_audits()
        with pytest.raises(ChainError) as caught:
            await verifier.tick()
        assert caught.value.code == "rpc-down"
        early, abstained = await verifier._store.verdicts(epoch)
        assert {verdict.verdict for verdict in early} <= {10}
        assert len(early) < 3
        assert abstained == {}

        proxy.mode = "pass"
        await drive(network, [verifier], lambda: committed(network, epoch, [index]))
        done, abstained = await verifier._store.verdicts(epoch)
        assert {verdict.verdict for verdict in done} == {10}
        assert abstained == {}


async def test_starting_again_stakes_and_seats_only_once(network: Network) -> None:
    index = 8
    me = network.chain_address(index)
    await network.admin.contracts.efed_token.transfer(me, 150 * WEI)
    for stake in (None, None, 120 * WEI):
        async with AsyncExitStack() as stack:
            await enter_verifier(stack, network.config(index, stake=stake))
    assert await network.admin.token_balance(me) == 30 * WEI
    taken = await network.admin.history("SeatRegistry", "SeatTaken")
    assert [event.args["verifier"] for event in taken].count(me) == 1
    # A seated verifier that cannot pay for more keeps running with what it has.
    async with AsyncExitStack() as stack:
        await enter_verifier(stack, network.config(index, stake=500 * WEI))


@pytest.mark.parametrize(
    ("efed", "stake", "code"), [(0, None, "insufficient-balance"), (200, 50 * WEI, "stake-too-low")]
)
async def test_a_seat_that_cannot_be_paid_is_refused_before_anything_is_sent(
    network: Network, efed: int, stake: int | None, code: str
) -> None:
    me = network.chain_address(8)
    await network.admin.contracts.efed_token.transfer(me, efed * WEI)
    with pytest.raises(ConfigError) as caught:
        async with AsyncExitStack() as stack:
            await enter_verifier(stack, network.config(8, stake=stake))
    assert caught.value.code == code
    assert await network.admin.token_balance(me) == efed * WEI


async def test_a_killed_process_reveals_after_its_restart(network: Network, honest: Trace) -> None:
    index = VERIFIERS[0]

    async def until(done: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + 120
        while not await done():
            assert time.monotonic() < deadline, (network.home / f"verifier{index}" / "log").read_text()
            await network.clock.mine()
            await asyncio.sleep(0.05)

    async def noted() -> bool:
        store = await AttestationStore.open(
            store_path(network.config(index).home, network.live.deployment, network.chain_address(index))
        )
        try:
            return bool((await store.history())[0]["commit_tx"])
        finally:
            await store.close()

    epoch = await work(network, honest)
    await network.clock.skip_to_phase(epoch + 1, 0, 0.02)
    process = await start_process(network, index)
    try:
        await until(lambda: committed(network, epoch, [index]))
        # Mined is not yet noted: the record of its transaction comes after the receipt.
        await until(noted)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        await network.clock.skip_to_phase(epoch + 1, 1)
        process = await start_process(network, index)
        await until(lambda: revealed(network, epoch, [index]))
        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(10, 0, False)} for hop in range(3)}
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    status = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "efedllm_verifier", "status", "--json", "--rpc", network.live.rpc_url),
        *("--deployment", str(network.live.path), "--home", str(network.config(index).home)),
        *("--keystore", str(network.config(index).keystore)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(status.communicate(), 120)
    report = json.loads(out)
    assert status.returncode == 0
    assert (report["address"], report["seat"], report["stake"]) == (
        network.chain_address(index),
        "active",
        str(100 * WEI),
    )
    assert [(record["epoch"], set(record["verdicts"].values())) for record in report["epochs"]] == [(epoch, {10})]
    assert report["epochs"][0]["commit_tx"]
    assert report["epochs"][0]["reveal_tx"]

"""Batches, settlements and rewards on a real chain, through crashes and outages at every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio

from efedllm.chain import ChainTime
from efedllm.chain.amounts import WEI, cost_of_tokens
from efedllm.commitments.hashing import keccak
from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm.commitments.messages import HopCommit
from efedllm.wire.messages import ErrorMsg
from tests.chain.drop_proxy import DropProxy
from tests.node.node_kit import MANUAL, Lab, eventually
from tests.node.raw_client import RawClient
from tests.node.test_generation import PROMPT


async def run_job(lab: Lab, count: int = 1) -> RawClient:
    async with await lab.client() as client:
        for i in range(1, count + 1):
            await client.generate(PROMPT, 4, 9 * i)
    return client


async def skip(lab: Lab, epoch: int, fraction: float) -> ChainTime:
    return await lab.live.clock(lab.chain).skip_to(epoch, fraction)


async def test_an_epoch_ends_in_one_batch_that_auditors_can_open(pair: Lab) -> None:
    epoch = await pair.begin_epoch()
    await run_job(pair, 2)
    for app in pair.apps:
        await app.epoch_loop.tick()
    assert await pair.chain.batches(epoch) == []
    assert await pair.post_batches() == epoch
    for hop, app in enumerate(pair.apps):
        (posted,) = await pair.batches(epoch, app)
        assert posted.count == 2
        async with aiohttp.ClientSession() as http, http.get(f"{app.endpoint}/v1/batches/{posted.seq}") as response:
            served = await response.json()
        leaves = []
        for leaf in served["leaves"]:
            commit = HopCommit.from_json(leaf["commit"])
            assert commit.hop == hop
            assert ("prompt" in leaf, "emitted" in leaf) == (hop == 0, hop == 1)
            leaves.append(hop_leaf(commit.digest(pair.chain.efl_domain), bytes.fromhex(leaf["salt"][2:])))
        assert batch_root(app.address, epoch, posted.seq, leaves) == posted.root
        assert (served["epoch"], served["count"], served["root"]) == (epoch, 2, "0x" + posted.root.hex())


async def test_later_jobs_go_into_the_next_epochs_batch(pair: Lab) -> None:
    epoch = await pair.begin_epoch()
    await run_job(pair)
    await skip(pair, epoch, 0.72)
    app = pair.apps[0]
    await app.epoch_loop.tick()
    await run_job(pair)
    await app.epoch_loop.tick()
    assert len(await pair.batches(epoch, app)) == 1
    await skip(pair, epoch + 1, 0.72)
    await app.epoch_loop.tick()
    (second,) = await pair.batches(epoch + 1, app)
    assert (second.seq, second.count) == (1, 1)


@pytest.mark.parametrize("sent", [False, True])
async def test_a_crash_around_the_posting_posts_once(pair: Lab, sent: bool) -> None:
    epoch = await pair.begin_epoch()
    await run_job(pair)
    await skip(pair, epoch, 0.72)
    app = pair.apps[0]
    leaves = await app.store.pending_leaves()
    root = batch_root(app.address, epoch, 0, [hop_leaf(leaf.digest, leaf.salt) for leaf in leaves])
    await app.store.plan(0, epoch, root, [leaf.job_id for leaf in leaves])
    if sent:
        await app.chain.contracts.commitment_log.post(epoch, 0, root, len(leaves))
    # Here the process dies: what it knew is gone, what it stored is not.
    config = app.config
    await pair.stop(app)
    again = await pair.launch(config)
    await again.epoch_loop.tick()
    await again.epoch_loop.tick()
    (posted,) = await pair.batches(epoch, again)
    assert posted.root == root
    found = await again.store.posted(0)
    assert found is not None
    assert len(found[1]) == 1


async def test_a_batch_that_missed_its_epoch_is_made_anew(pair: Lab) -> None:
    epoch = await pair.begin_epoch()
    await run_job(pair)
    app = pair.apps[0]
    leaves = await app.store.pending_leaves()
    await app.store.plan(0, epoch, keccak(b"a root of the old epoch"), [leaf.job_id for leaf in leaves])
    await skip(pair, epoch + 1, 0.72)
    await app.epoch_loop.tick()
    assert await pair.batches(epoch, app) == ()
    (posted,) = await pair.batches(epoch + 1, app)
    assert posted.count == 1
    assert posted.root == batch_root(app.address, epoch + 1, 0, [hop_leaf(leaf.digest, leaf.salt) for leaf in leaves])


async def test_one_of_the_nodes_settles_and_both_are_paid(pair: Lab) -> None:
    epoch = await pair.begin_epoch()
    client = await run_job(pair)
    first, second = pair.apps
    await skip(pair, epoch, 0.75)
    await asyncio.gather(first.epoch_loop.tick(), second.epoch_loop.tick())
    await second.epoch_loop.tick()
    settled = await pair.chain.events("SessionEscrow", "Settled")
    assert [event.args["cumulative"] for event in settled] == [cost_of_tokens(9, client.session.price)]
    owed = [info.owed for info in await pair.infos()]
    assert min(owed) > 0
    # Nothing is settled a second time.
    await first.epoch_loop.tick()
    assert len(await pair.chain.events("SessionEscrow", "Settled")) == 1


async def test_a_closing_session_is_settled_at_once(pair: Lab) -> None:
    await pair.begin_epoch()
    client = await run_job(pair)
    await pair.chain.contracts.session_escrow.request_close(client.session.key)
    served = pair.apps[0].dispatcher.services.sessions.get(client.session.session_id)
    assert served is not None
    served.asked = float("-inf")
    await pair.apps[0].epoch_loop.tick()
    info = await pair.chain.session(client.session.session_id)
    assert info.settled == cost_of_tokens(9, client.session.price)


async def test_draining_finishes_posts_settles_and_refuses(pair: Lab) -> None:
    epoch = await pair.begin_epoch()
    async with await pair.client() as client:
        spec = client.spec(PROMPT, 30)
        await client.open_job(spec, PROMPT, 60)
        await client.start(spec)
        await client.receive()
        draining = asyncio.create_task(pair.apps[0].drain())

        async def refusing() -> bool:
            return pair.apps[0].dispatcher.draining

        await eventually(refusing, "the node drains")
        await client.send(0, client.open_msg(client.spec(PROMPT, 3), PROMPT, 0, None))
        commits, refused = 0, False
        while commits < 2 or not refused:
            _, message = await client.receive()
            commits += type(message).__name__ == "CommitMsg"
            refused = refused or (isinstance(message, ErrorMsg) and message.code == "draining")
        await draining
    (posted,) = await pair.batches(epoch, pair.apps[0])
    assert posted.count == 1
    info = await pair.chain.session(client.session.session_id)
    assert info.settled == cost_of_tokens(60, client.session.price)


@pytest_asyncio.fixture
async def proxy(ganache: str) -> AsyncIterator[DropProxy]:
    made = DropProxy(ganache)
    await made.start()
    yield made
    await made.stop()


async def test_serving_outlives_the_rpc_server_and_duties_catch_up(lab: Lab, proxy: DropProxy) -> None:
    await lab.start(1, (0, 8), rpc_url=proxy.url)
    app = lab.apps[0]
    epoch = await lab.begin_epoch()
    session = await lab.session()
    async with await lab.client(session) as client:
        await client.generate(PROMPT, 4, 9)
        proxy.refuse()
        app.chain.rpc.budget = 0.3
        # The session is known: it goes on being served.
        _, outcome = await client.generate(PROMPT, 4, 18)
        assert len(outcome.tokens) == 4
    await skip(lab, epoch, 0.75)
    await app.epoch_loop.tick()
    assert await lab.chain.batches(epoch) == []
    proxy.mode, app.chain.rpc.budget = "pass", 30.0
    await app.epoch_loop.tick()
    (posted,) = await lab.chain.batches(epoch)
    assert posted.count == 2
    assert (await lab.chain.session(session.session_id)).settled == cost_of_tokens(18, session.price)


async def test_an_answer_lost_while_posting_does_not_post_twice(lab: Lab, proxy: DropProxy) -> None:
    await lab.start(1, (0, 8), rpc_url=proxy.url)
    app = lab.apps[0]
    epoch = await lab.begin_epoch()
    await run_job(lab)
    await skip(lab, epoch, 0.72)
    proxy.match, proxy.mode, app.chain.rpc.budget = b"eth_sendRawTransaction", "swallow", 0.5
    await app.epoch_loop.tick()
    assert proxy.swallowed > 0
    proxy.mode, app.chain.rpc.budget = "pass", 30.0
    await app.epoch_loop.tick()
    await app.epoch_loop.tick()
    (posted,) = await lab.chain.batches(epoch)
    assert posted.count == 1
    assert (await app.store.posted(0)) is not None
    assert len(await lab.chain.events("SessionEscrow", "Settled")) == 1


async def test_old_evidence_is_forgotten_and_receipts_are_kept(lab: Lab) -> None:
    app = await lab.start(1, (0, 8), policy=replace(MANUAL, keep_epochs=1))
    epoch = await lab.begin_epoch()
    async with await lab.client() as client:
        spec, _ = await client.generate(PROMPT, 4, 9)
    await skip(lab, epoch, 0.72)
    await app.epoch_loop.tick()
    traces = app.dispatcher.services.traces
    assert await traces.size(spec.job_id, "in.bin") > 0
    await skip(lab, epoch + 1, 0.1)
    await app.epoch_loop.tick()
    assert await traces.size(spec.job_id, "in.bin") > 0
    await skip(lab, epoch + 2, 0.1)
    await app.epoch_loop.tick()
    assert await traces.size(spec.job_id, "in.bin") == 0
    assert await app.store.receipt(spec.job_id) is not None
    async with aiohttp.ClientSession() as http, http.get(f"{app.endpoint}/v1/batches/0") as response:
        assert response.status == 404


async def judge(lab: Lab, epoch: int, node: str, seats: list[int]) -> None:
    """Three verifiers pass the node's epoch. Ends in the reveal phase of the epoch after it."""
    verdict, salt, tap, evidence = 200, bytes(32), bytes(32), bytes(32)
    chains = [await lab.live.connect(index) for index in seats]
    await skip(lab, epoch + 1, 0.02)
    await lab.chain.contracts.seat_registry.arm_seed(epoch)
    await lab.live.clock(lab.chain).mine(3)
    await lab.chain.contracts.seat_registry.fix_seed(epoch)
    from eth_abi.abi import encode

    for chain in chains:
        address = chain.address("VerifierCommittee")
        types = [
            "uint256",
            "address",
            "uint64",
            "address",
            "address[]",
            "uint16[]",
            "bytes32[]",
            "bytes32[]",
            "bytes32",
        ]
        values = [chain.chain_id, address, epoch, chain.account_address, [node], [verdict], [tap], [evidence], salt]
        await chain.contracts.verifier_committee.commit(epoch, keccak(encode(types, values)))
    await skip(lab, epoch + 1, 0.36)
    for chain in chains:
        await chain.contracts.verifier_committee.reveal(epoch, [node], [verdict], [tap], [evidence], salt)
        await chain.close()


async def test_work_that_passed_its_audit_is_weighed_and_claimed_once(lab: Lab) -> None:
    seats = [5, 6, 7]
    for index in seats:
        account = lab.live.account(index)
        await lab.chain.contracts.efed_token.transfer(account.address, 100 * WEI)
        async with await lab.live.connect(index) as chain:
            await chain.ensure_allowance("StakeVault", 100 * WEI)
            await chain.contracts.stake_vault.stake(100 * WEI)
            await chain.contracts.seat_registry.take_seat()
    app = await lab.start(1, (0, 8))
    epoch = await lab.begin_epoch()
    await run_job(lab)
    await skip(lab, epoch, 0.75)
    await app.epoch_loop.tick()
    await judge(lab, epoch, app.address, seats)
    await skip(lab, epoch + 1, 0.70)
    await app.epoch_loop.tick()
    # No verdict yet: the verifiers still have time to pronounce it.
    assert await lab.chain.events("RewardPool", "Weighed") == []
    await skip(lab, epoch + 1, 0.88)
    await app.epoch_loop.tick()
    await app.epoch_loop.tick()
    (weighed,) = await lab.chain.events("RewardPool", "Weighed")
    assert weighed.args["weight"] > 0
    before = await lab.chain.token_balance(app.address)
    owed = await lab.chain.contracts.session_escrow.owed_of(app.address)
    await skip(lab, epoch + 2, 0.05)
    reward = await lab.chain.contracts.reward_pool.claimable(epoch, app.address)
    await app.epoch_loop.tick()
    await app.epoch_loop.tick()
    assert reward > 0
    assert owed > 0
    assert await lab.chain.token_balance(app.address) == before + reward + owed
    assert len(await lab.chain.events("RewardPool", "RewardClaimed")) == 1

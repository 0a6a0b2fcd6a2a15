"""One job against a real server that speaks the node's side: tokens, payment, receipts, and what a cheat runs into."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from efedllm.chain.amounts import cost_of_tokens
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.messages import NO_EOS, Envelope, RouteHop, ids_bytes
from efedllm.commitments.signing import check
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.blame import contradictions, find_faults
from efedllm_client.jobs.generation_job import GenerationJob
from efedllm_client.jobs.job import RouteFailure
from efedllm_client.payments.store import ClientStore
from tests.client.toy_node import (
    CLIENT_SIGNER,
    DOMAIN,
    MODEL_ID,
    NODE,
    NODE_SIGNER,
    PRICE,
    STRANGER,
    Behaviour,
    ToyNode,
    continuation,
    job_order,
    job_spec,
    paid_session,
    running,
)

PROMPT = [5, 6, 7]
IMPATIENT = ClientConfig(opening_seconds=5.0, first_token_seconds=0.5, token_seconds=0.5, receipts_seconds=0.3)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ClientStore]:
    opened = await ClientStore.at(tmp_path / "client.db")
    yield opened
    await opened.close()


async def make_job(store: ClientStore, node: ToyNode, new: int = 40, eos_token: int = NO_EOS) -> GenerationJob:
    session = await paid_session(store)
    spec = job_spec(session, PROMPT, new, eos_token)
    return GenerationJob(job_order(session, spec, PROMPT, node.hop, IMPATIENT))


async def collect(job: GenerationJob, into: list[int] | None = None) -> list[int]:
    tokens = [] if into is None else into
    async for token in job.run():
        tokens.append(token)
    return tokens


async def test_tokens_arrive_are_paid_for_and_bring_a_receipt(store: ClientStore) -> None:
    async with running() as node:
        job = await make_job(store, node)
        tokens = await collect(job)
    assert tokens == continuation(PROMPT, 40) == job.record.emitted
    assert job.record.finish_reason == "length"
    assert await find_faults(job.record, DOMAIN, MODEL_ID) == []
    # Paid exactly for the prompt and what came, in growing vouchers, each of which is on disk.
    paid = [v.voucher.cumulative for v in node.vouchers]
    assert paid == sorted(paid)
    assert paid[-1] == cost_of_tokens(43, PRICE)
    last = await store.last_voucher(job.record.spec.session_id)
    assert last is not None
    assert (last.voucher.cumulative, last.voucher.tokens) == (paid[-1], 43)


async def test_every_token_is_acknowledged_by_the_session_key(store: ClientStore) -> None:
    async with running() as node:
        job = await make_job(store, node, 5)
        await collect(job)
    assert [ack.from_pos for ack in node.acks] == [3, 4, 5, 6, 7]
    first = node.acks[0]
    tree = BoundaryTree(first.job_id, 0, WireDtype.I32, 1)
    tree.append(ids_bytes(PROMPT))
    tree.append(ids_bytes(job.record.emitted))
    envelope = Envelope(first.job_id, 0, 3, 1, tree.chunk(3, 1), bytes(32))
    check(envelope.digest(DOMAIN), first.signature, CLIENT_SIGNER.address)


async def test_the_end_token_ends_the_job(store: ClientStore) -> None:
    eos = continuation(PROMPT, 3)[-1]
    async with running() as node:
        job = await make_job(store, node, eos_token=eos)
        assert await collect(job) == continuation(PROMPT, 3)
    assert job.record.finish_reason == "eos"
    assert node.vouchers[-1].voucher.tokens <= 3 + 3 + 16


@pytest.mark.parametrize(
    ("behaviour", "code", "tokens"),
    [
        (Behaviour(wrong_signature_at=4), "bad-signature", 4),
        (Behaviour(skip_at=4), "out-of-order", 4),
        (Behaviour(finish_at=4), "ended-early", 4),
        (Behaviour(error_at=4), "engine-failed", 4),
        (Behaviour(silent_at=4), "stalled", 4),
        (Behaviour(demand=cost_of_tokens(10**6, PRICE)), "overcharge", 0),
    ],
)
async def test_a_route_that_breaks_the_rules_is_left(
    store: ClientStore, behaviour: Behaviour, code: str, tokens: int
) -> None:
    async with running(behaviour) as node:
        job = await make_job(store, node)
        seen: list[int] = []
        with pytest.raises(RouteFailure) as caught:
            await collect(job, seen)
    assert caught.value.error.code == code
    assert seen == continuation(PROMPT, tokens)
    assert caught.value.dead == frozenset()
    assert caught.value.accused <= {NODE}
    assert node.cancelled


async def test_a_demand_beyond_what_is_due_is_not_paid(store: ClientStore) -> None:
    """Inside the job's price, but for tokens that never came: the client pays its advance and no more."""
    async with running(Behaviour(demand=cost_of_tokens(40, PRICE))) as node:
        job = await make_job(store, node)
        with pytest.raises(RouteFailure) as caught:
            await collect(job)
    assert caught.value.error.code == "overcharge"
    assert caught.value.accused == {NODE}
    assert max(v.voucher.tokens for v in node.vouchers) == 3 + 16


async def test_a_demand_that_is_due_is_paid(store: ClientStore) -> None:
    async with running(Behaviour(demand=cost_of_tokens(12, PRICE))) as node:
        job = await make_job(store, node)
        assert await collect(job) == continuation(PROMPT, 40)


async def test_a_dead_node_is_named_and_nothing_it_sent_is_lost(store: ClientStore) -> None:
    async with running(Behaviour(die_at=7)) as node:
        job = await make_job(store, node)
        seen: list[int] = []
        with pytest.raises(RouteFailure) as caught:
            await collect(job, seen)
    assert seen == continuation(PROMPT, 7) == job.record.emitted
    assert NODE in caught.value.dead | caught.value.accused


async def test_a_node_that_is_not_the_registered_one_gets_no_job(store: ClientStore) -> None:
    async with running(Behaviour(hello_signer=CLIENT_SIGNER)) as node:
        job = await make_job(store, node)
        with pytest.raises(RouteFailure) as caught:
            await collect(job)
    assert caught.value.error.code == "wrong-node"
    assert caught.value.accused == {NODE}
    assert node.opened is None


async def test_nobody_at_the_endpoint(store: ClientStore) -> None:
    session = await paid_session(store)
    hop = RouteHop(NODE, NODE_SIGNER.address, "http://127.0.0.1:1", 0, 2)
    job = GenerationJob(job_order(session, job_spec(session, PROMPT, 4), PROMPT, hop, IMPATIENT))
    with pytest.raises(RouteFailure) as caught:
        await collect(job)
    assert caught.value.error.code == "unreachable"
    assert caught.value.dead == {NODE}


async def test_a_missing_receipt_is_a_fault_of_the_node_but_the_text_stands(store: ClientStore) -> None:
    async with running(Behaviour(commit=False)) as node:
        job = await make_job(store, node, 5)
        assert await collect(job) == continuation(PROMPT, 5)
    (finding,) = await find_faults(job.record, DOMAIN, MODEL_ID)
    assert finding.fault.kind == "missing-commit"
    assert finding.guilty == (NODE,)


async def test_a_receipt_for_other_tokens_names_the_node(store: ClientStore) -> None:
    async with running(Behaviour(commit_other_tokens=True)) as node:
        job = await make_job(store, node, 5)
        await collect(job)
        findings = await find_faults(job.record, DOMAIN, MODEL_ID)
    assert {f.fault.kind for f in findings} == {"tokens-hash", "input-mismatch"}
    assert {f.guilty for f in findings} == {(NODE,)}


async def test_two_receipts_of_one_hop_prove_that_it_lied(store: ClientStore) -> None:
    async with running(Behaviour(first_commit_by=NODE_SIGNER)) as node:
        job = await make_job(store, node, 5)
        await collect(job)
    assert [finding.fault.kind for finding in contradictions(job.record, DOMAIN)] == ["equivocation"]
    finding = (await find_faults(job.record, DOMAIN, MODEL_ID))[-1]
    proof = finding.proof
    assert proof is not None
    assert (finding.guilty, proof.differing, set(proof.signers)) == ((NODE,), ("in_root",), {NODE_SIGNER.address})
    assert finding.to_json()["evidence"] == proof.name


async def test_a_receipt_that_somebody_else_signed_proves_nothing(store: ClientStore) -> None:
    async with running(Behaviour(first_commit_by=STRANGER)) as node:
        job = await make_job(store, node, 5)
        await collect(job)
    assert len(job.record.others) == 1
    assert contradictions(job.record, DOMAIN) == []


async def test_stopping_early_cancels_the_job(store: ClientStore) -> None:
    async with running() as node:
        job = await make_job(store, node)
        async with aclosing(job.run()) as tokens:
            async for _ in tokens:
                break
    assert node.cancelled
    assert job.record.emitted


async def test_a_job_stopped_by_the_client_still_brings_receipts(store: ClientStore) -> None:
    async with running() as node:
        job = await make_job(store, node)
        seen = []
        async with aclosing(job.run()) as tokens:
            async for token in tokens:
                seen.append(token)
                if len(seen) == 3:
                    job.stop()
    assert seen == continuation(PROMPT, 3)
    assert job.record.emitted[:3] == seen
    assert job.record.commits[0] is not None
    assert await find_faults(job.record, DOMAIN, MODEL_ID) == []

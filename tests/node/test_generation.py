"""Generation through real nodes: the tokens, the chained receipts, the evidence behind them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from efedllm.commitments.blame import check_route_commits
from efedllm.commitments.boundary import verify_boundary
from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.evidence import BoundaryEvidence
from efedllm.commitments.messages import SignedCommit
from efedllm.commitments.signing import check
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.wire.messages import CancelMsg
from tests.node.node_kit import Lab, eventually
from tests.node.raw_client import RawClient

# All tests here speak to the same two nodes, each in sessions and jobs of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [7, 3, 90, 11, 42]


def greedy(model_dir: Path, prompt: Sequence[int], n: int) -> list[int]:
    """What one engine with all layers generates."""
    engine = ShardEngine.load(model_dir, 0, 8)
    sequence = engine.new_sequence()
    tokens: list[int] = []
    inputs = np.array(prompt, dtype=np.int32)
    for _ in range(n):
        hidden = engine.step([StepItem(sequence, inputs)])[0]
        tokens.append(int(np.argmax(engine.logits(hidden[-1:])[0])))
        inputs = np.array(tokens[-1:], dtype=np.int32)
    return tokens


async def get(url: str) -> tuple[int, bytes, Any]:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.read(), response.headers


def faults(client: RawClient, spec: Any, outcome: Any, prompt: Sequence[int]) -> list[Any]:
    return check_route_commits(
        spec,
        prompt,
        outcome.tokens,
        outcome.commits,
        domain=client.domain,
        route=client.route,
        model_id=client.session.key.model_id,
    )


@pytest.mark.parametrize("dtype", [WireDtype.F32, WireDtype.BF16])
async def test_two_nodes_generate_what_one_engine_does(shared_pair: Lab, dtype: WireDtype) -> None:
    async with await shared_pair.client() as client:
        spec, outcome = await client.generate(PROMPT, 12, 40, wire_dtype=int(dtype))
    if dtype is WireDtype.F32:
        assert outcome.tokens == greedy(shared_pair.model_dir, PROMPT, 12)
    assert len(outcome.tokens) == 12
    assert outcome.finish is not None
    assert (outcome.finish.reason, outcome.finish.tokens) == ("length", 12)
    assert faults(client, spec, outcome, PROMPT) == []


async def test_generation_stops_at_the_end_token(shared_pair: Lab) -> None:
    expected = greedy(shared_pair.model_dir, PROMPT, 12)
    stop = expected[5]
    async with await shared_pair.client() as client:
        spec, outcome = await client.generate(PROMPT, 12, 40, eos_token=stop)
    assert outcome.tokens == expected[: expected.index(stop) + 1]
    assert outcome.finish is not None
    assert outcome.finish.reason == "eos"
    assert faults(client, spec, outcome, PROMPT) == []


async def test_sampling_is_reproducible_from_the_seed(shared_pair: Lab) -> None:
    how: dict[str, Any] = {"temperature_milli": 900, "top_k": 20, "top_p_ppm": 900_000, "seed": b"\7" * 32}
    async with await shared_pair.client() as client:
        _, first = await client.generate(PROMPT, 10, 40, **how)
        _, second = await client.generate(PROMPT, 10, 40, **how)
        _, other = await client.generate(PROMPT, 10, 60, **how | {"seed": b"\x08" * 32})
    assert first.tokens == second.tokens
    assert first.tokens != other.tokens


async def test_jobs_of_many_clients_share_the_engine_and_do_not_mix(shared_pair: Lab) -> None:
    prompts = [[i + 1, 2 * i + 5, 60 - i] for i in range(5)]

    async def one(prompt: list[int]) -> list[int]:
        async with await shared_pair.client(sessions.pop()) as client:
            return (await client.generate(prompt, 10, 40))[1].tokens

    await shared_pair.idle()
    batcher = shared_pair.apps[0].dispatcher.services.batcher
    before = batcher.positions
    sessions = [await shared_pair.session() for _ in prompts]
    results = await asyncio.gather(*(one(prompt) for prompt in prompts))
    assert results == [greedy(shared_pair.model_dir, prompt, 10) for prompt in prompts]
    assert batcher.positions - before == 5 * (3 + 9)


async def test_both_neighbours_hold_the_rows_and_both_signatures(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        spec, outcome = await client.generate(PROMPT, 6, 30)
    first, second = outcome.commits
    assert first is not None
    assert second is not None
    tokens = len(PROMPT) + 5
    a, b = client.route
    seen = []
    for app in shared_pair.apps:
        status, body, headers = await get(f"{app.endpoint}/v1/boundaries/{first.commit.out_root.hex()}")
        assert status == 200
        assert (headers["X-Job"], headers["X-Boundary"]) == ("0x" + spec.job_id.hex(), "1")
        assert (headers["X-Dtype"], headers["X-Dim"], headers["X-Count"]) == ("1", "32", str(tokens))
        assert verify_boundary(spec.job_id, 1, WireDtype.F32, 32, body, second.commit.in_root)
        seen.append(body)
        _, raw, _ = await get(f"{app.endpoint}/v1/jobs/{spec.job_id.hex()}/evidence?boundary=1")
        evidence = BoundaryEvidence.from_json(json.loads(raw), spec.job_id, 1)
        assert len(evidence.leaves) == tokens
        assert sum(record.envelope.n for record in evidence.envelopes) == tokens
        for record in evidence.envelopes:
            digest = record.envelope.digest(client.domain)
            assert record.sender_sig is not None
            assert record.receiver_sig is not None
            check(digest, record.sender_sig, a.signer)
            check(digest, record.receiver_sig, b.signer)
        _, raw, _ = await get(f"{app.endpoint}/v1/jobs/0x{spec.job_id.hex()}/receipt")
        assert SignedCommit.from_json(json.loads(raw)) in outcome.commits
    assert seen[0] == seen[1]
    status, body, _ = await get(f"{shared_pair.apps[0].endpoint}/v1/boundaries/{first.commit.in_root.hex()}")
    assert status == 200
    assert decode(body, WireDtype.I32, 1)[:, 0].tolist() == PROMPT + outcome.tokens[:-1]


async def test_the_last_hidden_states_repeat_in_one_prefill(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        _, outcome = await client.generate(PROMPT, 8, 30)
    last = outcome.commits[1]
    assert last is not None
    _, rows_in, _ = await get(f"{shared_pair.apps[1].endpoint}/v1/boundaries/{last.commit.in_root.hex()}")
    _, rows_out, _ = await get(f"{shared_pair.apps[1].endpoint}/v1/boundaries/{last.commit.out_root.hex()}")
    engine = ShardEngine.load(shared_pair.model_dir, 3, 8)
    inputs = decode(rows_in, WireDtype.F32, 32)
    again = engine.step([StepItem(engine.new_sequence(), np.array(inputs))])[0]
    np.testing.assert_allclose(again, decode(rows_out, WireDtype.F32, 32), rtol=2e-4, atol=2e-4)
    assert encode(again, WireDtype.F32) != b""


async def test_cancel_commits_what_was_done(shared_pair: Lab) -> None:
    async with await shared_pair.client() as client:
        spec = client.spec(PROMPT, 50)
        await client.open_job(spec, PROMPT, 60)
        await client.start(spec)

        async def cancel(count: int) -> None:
            if count == 4:
                for hop in (0, 1):
                    await client.send(hop, CancelMsg(spec.job_id, "enough"))

        outcome = await client.collect(spec, on_token=cancel)
    assert outcome.finish is not None
    assert outcome.finish.reason == "cancelled"
    assert 4 <= len(outcome.tokens) < 50
    assert outcome.tokens == greedy(shared_pair.model_dir, PROMPT, len(outcome.tokens))
    assert faults(client, spec, outcome, PROMPT) == []


async def test_cancel_before_the_start_leaves_nothing(shared_pair: Lab) -> None:
    await shared_pair.idle()
    before = [Counter(await app.store.counts()) for app in shared_pair.apps]
    async with await shared_pair.client() as client:
        spec = client.spec(PROMPT, 5)
        await client.open_job(spec, PROMPT, 20)
        await client.send(0, CancelMsg(spec.job_id, "changed my mind"))
        await shared_pair.idle()
    for app, counts in zip(shared_pair.apps, before, strict=True):
        assert Counter(await app.store.counts()) - counts == {"cancelled": 1}
        assert sum((await app.store.counts()).values()) == counts.total() + 1


async def test_a_client_that_vanishes_leaves_a_committed_job(shared_pair: Lab) -> None:
    session = await shared_pair.session()
    spec_id = b""
    async with await shared_pair.client(session) as client:
        spec = client.spec(PROMPT, 50)
        spec_id = spec.job_id
        await client.open_job(spec, PROMPT, 60)
        await client.start(spec)
        for _ in range(3):
            await client.receive()

    async def committed() -> bool:
        return all([await app.store.receipt(spec_id) is not None for app in shared_pair.apps])

    await eventually(committed, "both nodes commit")
    first, second = [await app.store.receipt(spec_id) for app in shared_pair.apps]
    assert first is not None
    assert second is not None
    assert first.commit.tokens == second.commit.tokens >= len(PROMPT)
    assert second.commit.prev_commit == first.commit.digest(shared_pair.chain.efl_domain)
    assert first.commit.spec_hash == second.commit.spec_hash == spec.digest(shared_pair.chain.efl_domain)
    assert second.commit.in_root == first.commit.out_root

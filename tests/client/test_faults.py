"""Two hops that contradict each other: their evidence decides who lied."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from aiohttp import web

from efedllm.commitments.blame import fed_ids, token_tree
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import Envelope, HopCommit, JobSpec, RouteHop, SignedCommit, ids_hash
from efedllm.commitments.signing import Signer
from efedllm_client.jobs.blame import find_faults
from efedllm_client.jobs.job import PaidJobRecord
from tests.client.toy_node import DOMAIN, MODEL_ID

SIGNERS = (Signer(b"\x11" * 32), Signer(b"\x12" * 32))
ADDRESSES = ("0x" + "1" * 40, "0x" + "2" * 40)
PROMPT, EMITTED = (1, 2, 3), [4, 5]
DIM = 4
POSITIONS = len(PROMPT) + len(EMITTED) - 1
SPEC = JobSpec(bytes(32), 0, ids_hash(PROMPT), 3, 2, 0, 0, 1_000_000, bytes(32), 1)


def tree(value: float) -> BoundaryTree:
    built = BoundaryTree(SPEC.job_id, 1, WireDtype.F32, DIM)
    built.append(encode(np.full((POSITIONS, DIM), value, dtype=np.float32), WireDtype.F32))
    return built


def commit(hop: int, in_root: bytes, out_root: bytes, prev: bytes) -> SignedCommit:
    message = HopCommit(
        job_id=SPEC.job_id,
        spec_hash=SPEC.digest(DOMAIN),
        hop=hop,
        lo=2 * hop,
        hi=2 * hop + 2,
        profile=0,
        wire_dtype=1,
        tokens=POSITIONS,
        model_id=MODEL_ID,
        shard_root=ZERO32,
        in_root=in_root,
        out_root=out_root,
        tokens_hash=ids_hash(EMITTED) if hop == 1 else ZERO32,
        aux_root=ZERO32,
        prev_commit=prev,
        epoch=1,
    )
    return SignedCommit(message, SIGNERS[hop].sign(message.digest(DOMAIN)))


def record(endpoints: tuple[str, str], sent: BoundaryTree, read: BoundaryTree) -> PaidJobRecord:
    """Hop 0 commits to `sent` on boundary 1, hop 1 to `read`."""
    first = commit(0, token_tree(SPEC.job_id, fed_ids(PROMPT, EMITTED)).root(), sent.root(), ZERO32)
    second = commit(1, read.root(), bytes([7]) * 32, first.commit.digest(DOMAIN))
    route = tuple(
        RouteHop(ADDRESSES[i], SIGNERS[i].address, endpoints[i], 2 * i, 2 * i + 2) for i in range(len(SIGNERS))
    )
    return PaidJobRecord(SPEC, bytes(65), PROMPT, route, list(EMITTED), [first, second], "length")


def evidence(opened: BoundaryTree, signed: BoundaryTree) -> BoundaryEvidence:
    """Leaves of `opened`, with an envelope both sides signed over `signed`."""
    envelope = Envelope(SPEC.job_id, 1, 0, POSITIONS, signed.chunk(0, POSITIONS), ZERO32)
    digest = envelope.digest(DOMAIN)
    return BoundaryEvidence(
        opened.leaves, (EnvelopeRecord(envelope, SIGNERS[0].sign(digest), SIGNERS[1].sign(digest)),)
    )


@asynccontextmanager
async def serving(page: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The address of a node that answers for one page of its jobs."""
    app = web.Application()
    app.router.add_get(f"/v1/jobs/{{job}}/{page}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def showing(shown: BoundaryEvidence | None) -> AsyncIterator[str]:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.match_info["job"] == "0x" + SPEC.job_id.hex()
        assert request.query["boundary"] == "1"
        if shown is None:
            return web.Response(status=404)
        return web.json_response(shown.to_json())

    async with serving("evidence", handler) as url:
        yield url


TRUE, FALSE = tree(1.0), tree(2.0)


async def test_whole_receipts_have_no_fault() -> None:
    assert await find_faults(record(("http://a", "http://b"), TRUE, TRUE), DOMAIN, MODEL_ID) == []


@pytest.mark.parametrize(
    ("sent", "read", "signed", "kind", "guilty"),
    [
        (FALSE, TRUE, TRUE, "sender-lied", ADDRESSES[0]),
        (TRUE, FALSE, TRUE, "receiver-lied", ADDRESSES[1]),
    ],
)
async def test_the_envelopes_name_the_liar(
    sent: BoundaryTree, read: BoundaryTree, signed: BoundaryTree, kind: str, guilty: str
) -> None:
    async with showing(evidence(sent, signed)) as first, showing(evidence(read, signed)) as second:
        (finding,) = await find_faults(record((first, second), sent, read), DOMAIN, MODEL_ID)
    assert finding.fault.kind == kind
    assert finding.guilty == (guilty,)
    assert finding.to_json()["guilty"] == [guilty]


async def test_the_silent_side_is_guilty() -> None:
    async with showing(None) as first, showing(evidence(FALSE, FALSE)) as second:
        (finding,) = await find_faults(record((first, second), TRUE, FALSE), DOMAIN, MODEL_ID)
    assert (finding.fault.kind, finding.guilty) == ("silent", (ADDRESSES[0],))


async def test_a_missing_receipt_beside_a_whole_one() -> None:
    half = record(("http://a", "http://b"), TRUE, TRUE)
    half.commits[0] = None
    (finding,) = await find_faults(half, DOMAIN, MODEL_ID)
    assert (finding.fault.kind, finding.guilty) == ("missing-commit", (ADDRESSES[0],))


@asynccontextmanager
async def previous(shown: SignedCommit | None) -> AsyncIterator[str]:
    """A hop that shows what its commitment names."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.match_info["job"] == "0x" + SPEC.job_id.hex()
        return web.Response(status=404) if shown is None else web.json_response(shown.to_json())

    async with serving("previous", handler) as url:
        yield url


@pytest.mark.parametrize("case", ["shown", "not shown", "made up"])
async def test_another_commitment_of_the_hop_before_convicts_whoever_cannot_show_its_own(case: str) -> None:
    """Hop 0 gave hop 1 another commitment than the client; or hop 1 says so and cannot show it."""
    first = record(("", ""), TRUE, TRUE).commits[0]
    assert first is not None
    told = replace(first.commit, in_root=bytes(32))
    key = SIGNERS[1 if case == "made up" else 0]
    given = SignedCommit(told, key.sign(told.digest(DOMAIN)))
    async with previous(None if case == "not shown" else given) as url:
        whole = record(("", url), TRUE, TRUE)
        whole.commits[1] = commit(1, TRUE.root(), bytes([7]) * 32, told.digest(DOMAIN))
        (finding,) = await find_faults(whole, DOMAIN, MODEL_ID)
    if case == "shown":
        assert (finding.fault.kind, finding.guilty) == ("equivocation", (ADDRESSES[0],))
        assert finding.proof is not None
        assert {finding.proof.first, finding.proof.second} == {first, given}
    else:
        assert finding.guilty == (ADDRESSES[1],)
        assert finding.proof is None


async def test_a_forged_receipt_proves_nothing_against_the_node() -> None:
    forged = record(("http://a", "http://b"), TRUE, TRUE)
    real = forged.commits[1]
    assert real is not None
    forged.commits[1] = replace(real, signature=Signer(b"\x13" * 32).sign(real.commit.digest(DOMAIN)))
    (finding,) = await find_faults(forged, DOMAIN, MODEL_ID)
    assert (finding.fault.kind, finding.guilty) == ("bad-signature", ())

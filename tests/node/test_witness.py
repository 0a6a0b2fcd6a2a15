"""What a node keeps of the hop before it, shows, and notices."""

from __future__ import annotations

import json
from dataclasses import replace

from efedllm.chain.disputes import FOLDER, EvidenceFolder, read_proof
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import SignedCommit
from efedllm.wire.messages import CommitMsg
from efedllm_node.app import NodeApp
from tests.node.node_kit import Lab, eventually
from tests.node.test_generation import PROMPT, get


def evidence_of(app: NodeApp) -> EvidenceFolder:
    return EvidenceFolder(app.config.home / FOLDER)


async def test_a_commitment_after_the_job_that_contradicts_it_is_kept_as_proof(pair: Lab) -> None:
    first, second = pair.apps
    async with await pair.client() as client:
        spec, outcome = await client.generate(PROMPT, 3, 20)
    given, own = outcome.commits
    assert given is not None
    assert own is not None
    # What the second hop was given it keeps and shows; the first one was given nothing.
    status, body, _ = await get(f"{second.endpoint}/v1/jobs/{spec.job_id.hex()}/previous")
    assert (status, SignedCommit.from_json(json.loads(body))) == (200, given)
    assert given.commit.digest(pair.chain.efl_domain) == own.commit.prev_commit
    status, body, _ = await get(f"{first.endpoint}/v1/jobs/{spec.job_id.hex()}/previous")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not-found")

    kept_of = await second.store.previous(spec.job_id)
    assert kept_of is not None
    assert (kept_of.node, kept_of.signed) == (first.address, given)
    link = await first.dispatcher.neighbours.reach(client.route[1])
    # The same again says nothing; another one, by the same key, is a proof; by another key it is nothing.
    other = replace(given.commit, in_root=keccak(b"other"))
    digest = other.digest(pair.chain.efl_domain)
    for signature in (given.signature, second.dispatcher.services.signer.sign(digest)):
        await link.send(CommitMsg(other, signature))
    await link.send(CommitMsg(given.commit, given.signature))
    assert evidence_of(second).open() == []
    await link.send(CommitMsg(other, first.dispatcher.services.signer.sign(digest)))

    async def kept() -> bool:
        return len(evidence_of(second).open()) == 1

    await eventually(kept, "the proof is on disk")
    proof = read_proof(evidence_of(second).open()[0])
    assert (proof.node, proof.differing) == (first.address, ("in_root",))
    assert proof.signers == (first.dispatcher.services.signer.address,) * 2
    assert evidence_of(first).open() == []

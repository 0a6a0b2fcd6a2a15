"""Links between hops: signed envelopes decide who changed the rows of a boundary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import chunk_hash
from efedllm.commitments.messages import Envelope
from efedllm.commitments.signing import Signer, recover
from efedllm_verifier.fetch import FetchLimits, NodeReader
from efedllm_verifier.leaf import LeafFault
from efedllm_verifier.neighbour_checks import check_inputs, check_outputs, unsigned_positions
from efedllm_verifier.node_directory import Party
from efedllm_verifier.statistic import Outcome
from tests.verifier.audit_lab import DOMAIN
from tests.verifier.served_node import Job, Lies, ServedNode, rewritten
from tests.verifier.test_leaf import HIDDEN, NODES, SIGNERS, a_job

QUICK = FetchLimits(connect=0.5, total=2.0, attempts=1)


def signer(hop: int) -> frozenset[str]:
    return frozenset({SIGNERS[hop].address})


def other_rows(job: Job) -> Job:
    """The same job, with one row of boundary 1 changed."""
    rows = np.frombuffer(job.trace.boundaries[1], dtype="<f4").copy()
    rows[2 * HIDDEN] += 1
    return replace(job, trace=rewritten(job.trace, 1, rows.tobytes()))


def test_every_row_the_sender_signed_is_covered() -> None:
    job = a_job()
    leaves = job.tree(1).leaves
    assert unsigned_positions(DOMAIN, leaves, 0, job.evidence(1), signer(0)) == []
    assert unsigned_positions(DOMAIN, leaves, 0, job.evidence(1), signer(1)) == [0, 1, 2, 3]


def test_a_row_nobody_sent_is_found() -> None:
    job = a_job()
    changed = other_rows(job).tree(1).leaves
    # The prompt went in one envelope: one changed row of it unsigns them all.
    assert unsigned_positions(DOMAIN, changed, 0, job.evidence(1), signer(0)) == [0, 1, 2]


def test_the_prompt_needs_no_signature_of_the_last_hop() -> None:
    job = a_job()
    leaves, evidence = job.tree(0).leaves, job.evidence(0)
    assert unsigned_positions(DOMAIN, leaves, 3, evidence, signer(1)) == []
    assert unsigned_positions(DOMAIN, leaves, 0, evidence, signer(1)) == [0, 1, 2]
    assert unsigned_positions(DOMAIN, leaves, 3, BoundaryEvidence(leaves, ()), signer(1)) == [3]


def test_signatures_that_are_missing_or_broken_cover_nothing() -> None:
    job = a_job()
    for sig in (None, bytes(65)):
        records = tuple(replace(record, sender_sig=sig) for record in job.evidence(1).envelopes)
        evidence = BoundaryEvidence(job.tree(1).leaves, records)
        assert unsigned_positions(DOMAIN, job.tree(1).leaves, 0, evidence, signer(0)) == [0, 1, 2, 3]


def test_one_signature_covers_the_envelopes_before_it() -> None:
    """The receiver cannot have made them up: the sender signed their digests."""
    job = a_job()
    leaves, envelopes = job.tree(1).leaves, job.evidence(1).envelopes
    first = tuple(replace(record, sender_sig=bytes(65)) for record in envelopes[:-1])
    assert len(first) == 1
    shown = BoundaryEvidence(leaves, (*first, envelopes[-1]))
    assert unsigned_positions(DOMAIN, leaves, 0, shown, signer(0)) == []
    # Without the signature on the last one, or with another envelope before it, nothing covers the first rows.
    unsigned = BoundaryEvidence(leaves, (*first, replace(envelopes[-1], sender_sig=None)))
    assert unsigned_positions(DOMAIN, leaves, 0, unsigned, signer(0)) == [0, 1, 2, 3]
    other = replace(first[0], envelope=replace(first[0].envelope, prev=keccak(b"another")))
    assert unsigned_positions(DOMAIN, leaves, 0, BoundaryEvidence(leaves, (other, envelopes[-1])), signer(0)) == [
        0,
        1,
        2,
    ]
    # A row that is not what was sent stays uncovered, what was sent before it does not.
    changed = BoundaryEvidence(leaves, (envelopes[0], replace(envelopes[-1], sender_sig=None)))
    assert unsigned_positions(DOMAIN, leaves, 0, changed, signer(0)) == [3]


SENDER, RECEIVER = Signer(keccak(b"sender")), Signer(keccak(b"receiver"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(0, 15), st.data())
def test_only_what_the_sender_signed_or_names_is_covered(sizes: list[int], start: int, data: st.DataObject) -> None:
    """Against the plain rule, with evidence that the receiver has tampered with in every way it can."""
    job, boundary = keccak(b"job"), 1
    leaves = [keccak(bytes([i])) for i in range(sum(sizes))]
    records, prev, at = [], ZERO32, 0
    for n in sizes:
        envelope = Envelope(job, boundary, at, n, chunk_hash(leaves[at : at + n]), prev)
        prev, at = envelope.digest(DOMAIN), at + n
        records.append(EnvelopeRecord(envelope, SENDER.sign(prev), None))
    honest = BoundaryEvidence(tuple(leaves), tuple(records))
    assert unsigned_positions(DOMAIN, leaves, 0, honest, frozenset({SENDER.address})) == []

    committed, shown = list(leaves), []
    for i in range(len(leaves)):
        if data.draw(st.integers(0, 9), label="change row") == 0:
            committed[i] = keccak(committed[i])
    for record in records[: data.draw(st.integers(0, len(records)), label="keep")]:
        e, what = record.envelope, data.draw(st.sampled_from(["as it is", "drop", "unsign", "forge", "rehash", "prev"]))
        if what == "drop":
            continue
        if what == "rehash":
            e = replace(e, chunk_hash=chunk_hash(committed[e.from_pos : e.from_pos + e.n]))
        if what == "prev":
            e = replace(e, prev=data.draw(st.sampled_from([ZERO32, *(r.envelope.digest(DOMAIN) for r in records)])))
        sig = {"unsign": None, "forge": RECEIVER.sign(e.digest(DOMAIN))}.get(what, record.sender_sig)
        shown.append(EnvelopeRecord(e, sig, None))
    sent = {r.envelope.digest(DOMAIN) for r in records}
    allowed, certain = set(), set()
    for record in shown:
        e = record.envelope
        places = range(e.from_pos, e.from_pos + e.n)
        if chunk_hash(committed[e.from_pos : e.from_pos + e.n]) != e.chunk_hash or e.digest(DOMAIN) not in sent:
            continue
        # The sender made this very envelope; whether the evidence proves it depends on what else is shown.
        allowed |= set(places)
        if record.sender_sig is not None and recover(e.digest(DOMAIN), record.sender_sig) == SENDER.address:
            certain |= set(places)
    evidence = BoundaryEvidence(tuple(committed), tuple(shown))
    missing = set(unsigned_positions(DOMAIN, committed, start, evidence, frozenset({SENDER.address})))
    wanted = set(range(start, len(committed)))
    assert wanted - allowed <= missing <= wanted - certain


async def inputs(job: Job, shown: Job, lies: Lies | None = None) -> LeafFault | None:
    """Hop 1 committed `job` and shows the envelopes of `shown`."""
    async with ServedNode(NODES[1], 1, [shown], lies or Lies()) as node, NodeReader(QUICK) as reader:
        own, sender = Party(node.url, signer(1)), Party("", signer(0))
        return await check_inputs(reader, DOMAIN, job.commit(1), job.tree(1).leaves, 0, own, sender)


async def test_honest_inputs_have_no_fault() -> None:
    assert await inputs(a_job(), a_job()) is None


async def test_made_up_inputs_are_a_fault() -> None:
    fault = await inputs(other_rows(a_job()), a_job())
    assert fault is not None
    assert fault.code == "unsigned-input"


async def test_not_showing_who_sent_the_inputs_is_withholding() -> None:
    fault = await inputs(a_job(), a_job(), Lies(evidence=True))
    assert fault is not None
    assert fault.code == "withheld"


async def outputs(
    sent: Job, received: Job, *, sender_shows: Job | None = None, receiver_shows: Job | None = None
) -> LeafFault | None:
    """Hop 0 committed `sent`, hop 1 committed `received`; each shows the envelopes of a job."""
    async with (
        ServedNode(NODES[0], 0, [sender_shows or sent]) as first,
        ServedNode(NODES[1], 1, [received]) as second,
        NodeReader(QUICK) as reader,
    ):
        if receiver_shows is not None:
            shown = receiver_shows
            received_evidence = shown.evidence(1)
            object.__setattr__(second.jobs[0], "evidence", lambda _: received_evidence)
        own, receiver = Party(first.url, signer(0)), Party(second.url, signer(1))
        return await check_outputs(reader, DOMAIN, sent.commit(0), own, receiver)


async def test_matching_commitments_are_no_dispute() -> None:
    assert await outputs(a_job(), a_job()) is None


async def test_a_sender_that_commits_to_other_rows_than_it_sent_is_to_blame() -> None:
    honest, lied = a_job(), other_rows(a_job())
    # It sent `honest`, commits `lied`, and holds acknowledgements for `honest` only.
    evidence = BoundaryEvidence(lied.tree(1).leaves, honest.evidence(1).envelopes)
    shown = replace(lied)
    object.__setattr__(shown, "evidence", lambda _: evidence)
    fault = await outputs(lied, honest, sender_shows=shown)
    assert fault is not None
    assert (fault.code, fault.outcome) == ("broken-link", Outcome.SEVERE)


async def test_a_receiver_that_commits_to_other_rows_does_not_hurt_the_sender() -> None:
    honest, lied = a_job(), other_rows(a_job())
    evidence = BoundaryEvidence(lied.tree(1).leaves, honest.evidence(1).envelopes)
    shown = replace(lied)
    object.__setattr__(shown, "evidence", lambda _: evidence)
    assert await outputs(honest, shown) is None


async def test_a_receiver_with_a_new_key_cannot_disown_what_it_acknowledged_with_the_old_one() -> None:
    fresh = Signer(keccak(b"the receiver's next key"))
    honest, lied = a_job(), replace(other_rows(a_job()), signers=(SIGNERS[0], fresh))
    evidence = BoundaryEvidence(lied.tree(1).leaves, honest.evidence(1).envelopes)
    object.__setattr__(lied, "evidence", lambda _: evidence)
    async with (
        ServedNode(NODES[0], 0, [honest]) as first,
        ServedNode(NODES[1], 1, [lied]) as second,
        NodeReader(QUICK) as reader,
    ):
        own, receiver = Party(first.url, signer(0)), Party(second.url, signer(1) | {fresh.address})
        assert await check_outputs(reader, DOMAIN, honest.commit(0), own, receiver) is None


async def test_a_receipt_by_a_stranger_is_no_evidence() -> None:
    lied = replace(other_rows(a_job()), signers=(SIGNERS[0], Signer(keccak(b"stranger"))))
    assert await outputs(a_job(), lied) is None


async def test_a_receiver_that_is_gone_proves_nothing() -> None:
    job = a_job()
    async with ServedNode(NODES[0], 0, [job]) as node, NodeReader(QUICK) as reader:
        own, gone = Party(node.url, signer(0)), Party("http://127.0.0.1:1", signer(1))
        assert await check_outputs(reader, DOMAIN, job.commit(0), own, gone) is None


@pytest.mark.parametrize("boundary", [0, 1])
def test_the_lab_makes_complete_evidence(boundary: int) -> None:
    evidence = a_job().evidence(boundary)
    assert len(evidence.leaves) == 4
    assert sum(record.envelope.n for record in evidence.envelopes) == (4 if boundary else 1)

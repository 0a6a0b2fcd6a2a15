"""Disputes: only liars are named, whatever they show."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments import signing
from efedllm.commitments.blame import Fault, blame_boundary, blame_prev_commit, blame_tokens, equivocation, token_tree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import act_leaf
from efedllm.commitments.messages import Envelope, HopCommit, SignedCommit
from efedllm.commitments.signing import Signer, recover
from efedllm.errors import ProtocolError
from tests.commitments.route_fixture import (
    DIM,
    DOMAIN,
    EMITTED,
    FED,
    JOB,
    PROMPT,
    SIGNERS,
    SPEC,
    T,
    commitments,
    rows,
    sign,
    tree_of,
)

# -------------------------------------------------------------------------------------------------


@dataclass
class Link:
    """Boundary 1 between hop 0 (sender) and hop 1 (receiver), as each of them will show it."""

    sender_commit: HopCommit
    receiver_commit: HopCommit
    sender: BoundaryEvidence | None
    receiver: BoundaryEvidence | None

    def blame(self) -> Fault:
        return blame_boundary(
            DOMAIN,
            JOB,
            1,
            self.sender,
            self.receiver,
            self.sender_commit,
            self.receiver_commit,
            SIGNERS[0].address,
            SIGNERS[1].address,
        )


def leaves_of(content: list[bytes]) -> tuple[bytes, ...]:
    return tuple(act_leaf(JOB, 1, i, WireDtype.BF16, DIM, row) for i, row in enumerate(content))


def envelopes(content: list[bytes], chunks: list[int], sender: Signer, receiver: Signer) -> tuple[EnvelopeRecord, ...]:
    """Doubly signed envelopes over `content` in these chunk sizes."""
    out: list[EnvelopeRecord] = []
    leaves, start, prev = leaves_of(content), 0, ZERO32
    for n in chunks:
        envelope = Envelope(JOB, 1, start, n, keccak(b"".join(leaves[start : start + n])), prev)
        prev = envelope.digest(DOMAIN)
        out.append(EnvelopeRecord(envelope, sender.sign(prev), receiver.sign(prev)))
        start += n
    return tuple(out)


CHUNKS = [3, 1, 1, 1]


def link(
    sent: list[bytes], sender_commits: list[bytes], receiver_commits: list[bytes], chunks: list[int] = CHUNKS
) -> Link:
    """Both really exchanged and signed `sent`; each commits to (and opens) its own version."""
    first, second = (signed.commit for signed in commitments(2))
    records = envelopes(sent, chunks, SIGNERS[0], SIGNERS[1])
    return Link(
        dataclasses.replace(first, out_root=tree_of(1, sender_commits).root(), tokens=len(sender_commits)),
        dataclasses.replace(second, in_root=tree_of(1, receiver_commits).root(), tokens=len(receiver_commits)),
        BoundaryEvidence(leaves_of(sender_commits), records),
        BoundaryEvidence(leaves_of(receiver_commits), records),
    )


TRUE, LIE = rows(1), rows(1, version=1)


def test_a_sender_that_commits_to_other_rows_than_it_sent() -> None:
    fault = link(TRUE, LIE, TRUE).blame()
    assert (fault.kind, fault.guilty, fault.boundary) == ("sender-lied", frozenset({0}), 1)


def test_a_receiver_that_commits_to_other_rows_than_it_acknowledged() -> None:
    fault = link(TRUE, TRUE, LIE).blame()
    assert (fault.kind, fault.guilty) == ("receiver-lied", frozenset({1}))


def test_both_lie() -> None:
    fault = link(TRUE, LIE, rows(1, version=2)).blame()
    assert (fault.kind, fault.guilty) == ("both-lied", frozenset({0, 1}))


def test_a_receiver_that_leaves_out_the_end() -> None:
    fault = link(TRUE, TRUE, TRUE[:-1]).blame()
    assert fault.guilty == {1}


def test_a_sender_that_changes_a_row_and_a_receiver_that_leaves_one_out() -> None:
    assert link(TRUE, LIE, TRUE[:-1]).blame().guilty == {0, 1}


OLD = frozenset(Signer(keccak(b"a key of before %d" % i)).address for i in range(40))


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [(TRUE, LIE), (LIE, TRUE), (LIE, LIE), (TRUE, TRUE[:-1]), (TRUE[:-1], TRUE), (TRUE + LIE[:1], TRUE)],
)
def test_further_keys_of_a_side_change_no_verdict_and_cost_no_further_recovery(
    sender: list[bytes], receiver: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender that may have signed with another key does not get away with what it did sign."""
    told = link(TRUE, sender, receiver)
    if sender == receiver:
        told.receiver_commit = dataclasses.replace(told.receiver_commit, in_root=keccak(b"nothing"))
    recovered: list[bytes] = []

    def counting(digest: bytes, signature: bytes) -> str:
        recovered.append(digest)
        return recover(digest, signature)

    monkeypatch.setattr(signing, "recover", counting)
    one = told.blame()
    alone = len(recovered)
    recovered.clear()
    first, second = SIGNERS[0].address, SIGNERS[1].address
    ends = (told.sender, told.receiver, told.sender_commit, told.receiver_commit)
    assert blame_boundary(DOMAIN, JOB, 1, *ends, OLD | {first}, OLD | {second}) == one
    assert len(recovered) == alone <= 2 * len(CHUNKS)


def test_a_sender_that_leaves_out_the_end() -> None:
    fault = link(TRUE, TRUE[:-1], TRUE).blame()
    assert fault.guilty == {0}


def test_a_side_that_adds_rows_nobody_saw() -> None:
    longer = rows(1, n=T + 1)
    assert link(TRUE, longer, TRUE).blame().guilty == {0}
    assert link(TRUE, TRUE, longer).blame().guilty == {1}


@pytest.mark.parametrize(("silent", "hop"), [("sender", 0), ("receiver", 1)])
def test_the_silent_side_is_guilty(silent: str, hop: int) -> None:
    case = link(TRUE, TRUE, LIE) if silent == "receiver" else link(TRUE, LIE, TRUE)
    setattr(case, silent, None)
    assert (case.blame().kind, case.blame().guilty) == ("silent", frozenset({hop}))


def test_silence_does_not_cover_the_other_sides_lie() -> None:
    case = link(TRUE, TRUE, LIE)
    case.sender = None
    assert case.blame().guilty == {0, 1}


def test_both_silent() -> None:
    case = link(TRUE, TRUE, LIE)
    case.sender = case.receiver = None
    assert (case.blame().kind, case.blame().guilty) == ("silent", frozenset({0, 1}))


def test_leaves_that_do_not_open_the_commitment_are_no_answer() -> None:
    case = link(TRUE, TRUE, LIE)
    assert case.receiver is not None
    case.receiver = dataclasses.replace(case.receiver, leaves=leaves_of(TRUE))
    assert (case.blame().kind, case.blame().guilty) == ("bad-opening", frozenset({1}))


def test_a_forged_senders_signature_justifies_nothing() -> None:
    case = link(TRUE, TRUE, LIE)
    assert case.receiver is not None
    forged = envelopes(LIE, CHUNKS, SIGNERS[2], SIGNERS[1])
    case.receiver = dataclasses.replace(case.receiver, envelopes=forged)
    assert case.blame().guilty == {1}


def test_a_forged_acknowledgement_justifies_nothing() -> None:
    case = link(TRUE, LIE, TRUE)
    assert case.sender is not None
    case.sender = dataclasses.replace(case.sender, envelopes=envelopes(LIE, CHUNKS, SIGNERS[0], SIGNERS[0]))
    assert case.blame().guilty == {0}


def test_an_envelope_of_another_job_or_boundary_justifies_nothing() -> None:
    case = link(TRUE, TRUE, LIE)
    assert case.receiver is not None
    foreign: list[EnvelopeRecord] = []
    for record in envelopes(LIE, CHUNKS, SIGNERS[0], SIGNERS[1]):
        envelope = dataclasses.replace(record.envelope, job_id=keccak(b"other job"))
        digest = envelope.digest(DOMAIN)
        foreign.append(EnvelopeRecord(envelope, SIGNERS[0].sign(digest), SIGNERS[1].sign(digest)))
    case.receiver = dataclasses.replace(case.receiver, envelopes=tuple(foreign))
    assert case.blame().guilty == {1}


def test_agreeing_sides_are_no_dispute() -> None:
    with pytest.raises(ProtocolError) as caught:
        link(TRUE, TRUE, TRUE).blame()
    assert caught.value.code == "no-dispute"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["sender", "receiver"]),
    st.sets(st.integers(0, T - 1), max_size=T),
    st.integers(0, 2),
    st.lists(st.integers(1, T), min_size=1, max_size=T),
    st.sampled_from(["keep", "drop", "forge", "silent"]),
)
def test_an_honest_side_is_never_blamed(liar: str, where: set[int], cut: int, cuts: list[int], evidence: str) -> None:
    """Whatever one side commits to and shows: it alone is guilty."""
    chunks: list[int] = []
    for n in cuts:
        if sum(chunks) < T:
            chunks.append(min(n, T - sum(chunks)))
    if sum(chunks) < T:
        chunks.append(T - sum(chunks))
    claimed = [LIE[4] if i in where and i != 4 else row for i, row in enumerate(TRUE)][: T - cut]
    if claimed == TRUE:
        return
    case = link(TRUE, claimed, TRUE, chunks) if liar == "sender" else link(TRUE, TRUE, claimed, chunks)
    own = getattr(case, liar)
    if evidence == "drop":
        setattr(case, liar, dataclasses.replace(own, envelopes=()))
    elif evidence == "forge":
        liar_key = SIGNERS[0 if liar == "sender" else 1]
        content = claimed + TRUE[len(claimed) :]
        setattr(case, liar, dataclasses.replace(own, envelopes=envelopes(content, chunks, liar_key, liar_key)))
    elif evidence == "silent":
        setattr(case, liar, None)
    assert case.blame().guilty == {0 if liar == "sender" else 1}


# ---------------------------------------------------------------------------------------


def test_two_commitments_for_one_job_are_equivocation() -> None:
    first = commitments(2)[0]
    other = sign(0, dataclasses.replace(first.commit, epoch=9))
    fault = equivocation(DOMAIN, first, other, SIGNERS[0].address)
    assert fault is not None
    assert fault.guilty == {0}
    assert equivocation(DOMAIN, first, first, SIGNERS[0].address) is None
    another_job = sign(0, dataclasses.replace(first.commit, job_id=keccak(b"x")))
    assert equivocation(DOMAIN, first, another_job, SIGNERS[0].address) is None
    forged = SignedCommit(other.commit, SIGNERS[1].sign(other.commit.digest(DOMAIN)))
    assert equivocation(DOMAIN, first, forged, SIGNERS[0].address) is None


def test_who_lied_about_prev_commit() -> None:
    first, second = commitments(2)
    shown_to_us = sign(0, dataclasses.replace(first.commit, epoch=9))

    def blame(ours: SignedCommit, commit: HopCommit, presented: SignedCommit | None) -> Fault:
        return blame_prev_commit(DOMAIN, ours, 1, commit, SIGNERS[0].address, presented)

    assert (blame(shown_to_us, second.commit, first).kind, blame(shown_to_us, second.commit, first).guilty) == (
        "equivocation",
        frozenset({0}),
    )
    assert blame(shown_to_us, second.commit, None).guilty == {1}
    invented = dataclasses.replace(second.commit, prev_commit=keccak(b"invented"))
    assert blame(first, invented, first).guilty == {1}
    forged = SignedCommit(first.commit, SIGNERS[1].sign(first.commit.digest(DOMAIN)))
    assert blame(shown_to_us, second.commit, forged).guilty == {1}
    with pytest.raises(ProtocolError) as caught:
        blame(first, second.commit, first)
    assert caught.value.code == "no-dispute"


# --------------------------------------------------------------------------------------------------------


def token_evidence(ids: list[int], sent: list[int], first: Signer, last: Signer) -> BoundaryEvidence:
    """Leaves over `ids`; one doubly signed envelope per token of `sent` after the prompt."""
    leaves = token_tree(JOB, sent).leaves
    records: list[EnvelopeRecord] = []
    prev = ZERO32
    for pos in range(len(PROMPT), len(sent)):
        envelope = Envelope(JOB, 0, pos, 1, keccak(leaves[pos]), prev)
        prev = envelope.digest(DOMAIN)
        records.append(EnvelopeRecord(envelope, last.sign(prev), first.sign(prev)))
    return BoundaryEvidence(token_tree(JOB, ids).leaves, tuple(records))


def blame_read(ids: list[int], told: list[int], acked: list[int], *, answer: bool = True) -> Fault:
    """Hop 0 committed to `ids`; it was told `told` and acknowledged `acked`; the client has EMITTED."""
    first = dataclasses.replace(commitments(3)[0].commit, in_root=token_tree(JOB, ids).root(), tokens=len(ids))
    mine = token_evidence(ids, told, SIGNERS[0], SIGNERS[2]) if answer else None
    theirs = token_evidence(FED, acked, SIGNERS[0], SIGNERS[2])
    return blame_tokens(DOMAIN, SPEC, PROMPT, EMITTED, first, mine, theirs, SIGNERS[0].address, 2, SIGNERS[2].address)


def test_a_last_hop_that_tells_the_client_other_tokens() -> None:
    told = [*FED[:-1], 99]
    assert blame_read(told, told, told).guilty == {2}


def test_a_last_hop_that_stops_feeding_hop_0() -> None:
    told = FED[:-1]
    assert blame_read(told, told, told).guilty == {2}


def test_a_hop_0_that_reads_other_tokens_than_it_was_told() -> None:
    assert blame_read([*FED[:-1], 99], FED, FED).guilty == {0}
    assert blame_read(FED[:-1], FED, FED).guilty == {0}
    assert blame_read([*FED, 99], FED, FED).guilty == {0}


def test_a_last_hop_that_lies_and_a_hop_0_that_leaves_a_token_out() -> None:
    told = [*PROMPT, 99, *FED[len(PROMPT) + 1 :]]
    assert blame_read(told[:-1], told, told).guilty == {0, 2}


def test_a_hop_0_that_reads_another_prompt() -> None:
    assert blame_read([4, *FED[1:]], FED, FED).guilty == {0}


def test_a_hop_0_that_does_not_show_what_it_read() -> None:
    told = [*FED[:-1], 99]
    fault = blame_read(told, told, told, answer=False)
    assert (fault.kind, fault.guilty) == ("silent", frozenset({0}))


def test_right_tokens_are_no_dispute() -> None:
    with pytest.raises(ProtocolError) as caught:
        blame_read(FED, FED, FED)
    assert caught.value.code == "no-dispute"

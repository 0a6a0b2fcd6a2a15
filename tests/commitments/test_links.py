"""Link checks: whole routes pass, every lie is seen, and only liars are named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import act_leaf
from efedllm.commitments.links import (
    Fault,
    blame_boundary,
    blame_prev_commit,
    blame_tokens,
    check_route_commits,
    equivocation,
    fed_ids,
    token_tree,
)
from efedllm.commitments.messages import Envelope, HopCommit, JobSpec, RouteHop, SignedCommit, ids_bytes, ids_hash
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError

DOMAIN = Domain(31337, "0x" + "11" * 20)
MODEL = keccak(b"model")
SIGNERS = [Signer(keccak(bytes([i]))) for i in range(4)]
PROMPT = [5, 6, 7]
EMITTED = [8, 9, 10, 11]
T = len(PROMPT) + len(EMITTED) - 1
DIM = 2
SPEC = JobSpec(keccak(b"session"), 1, ids_hash(PROMPT), len(PROMPT), 8, 0, 0, 1_000_000, bytes(32), 2)
JOB = SPEC.job_id


def rows(boundary: int, version: int = 0, n: int = T) -> list[bytes]:
    """Canonical bytes of every row of a boundary; another version differs in row 4 only."""
    array = np.arange(n * DIM, dtype=np.float32).reshape(n, DIM) + boundary
    if version:
        array[4] += version
    return [encode(array[i : i + 1], WireDtype.BF16) for i in range(n)]


def tree_of(boundary: int, content: list[bytes]) -> BoundaryTree:
    if boundary == 0:
        return token_tree(JOB, fed_ids(PROMPT, EMITTED))
    tree = BoundaryTree(JOB, boundary, WireDtype.BF16, DIM)
    tree.append(b"".join(content))
    return tree


def sign(hop: int, commit: HopCommit) -> SignedCommit:
    return SignedCommit(commit, SIGNERS[hop].sign(commit.digest(DOMAIN)))


def route(hops: int) -> list[RouteHop]:
    return [
        RouteHop(s.address, s.address, "http://127.0.0.1:1", 2 * i, 2 * i + 2, keccak(bytes([9, i])))
        for i, s in enumerate(SIGNERS[:hops])
    ]


def commitments(hops: int) -> list[SignedCommit]:
    signed: list[SignedCommit] = []
    roots = [tree_of(b, rows(b)).root() for b in range(hops + 1)]
    for i, here in enumerate(route(hops)):
        assert here.shard_root is not None
        commit = HopCommit(
            job_id=JOB,
            hop=i,
            lo=here.lo,
            hi=here.hi,
            profile=0,
            wire_dtype=2,
            tokens=T,
            model_id=MODEL,
            shard_root=here.shard_root,
            in_root=roots[i],
            out_root=roots[i + 1],
            tokens_hash=ids_hash(EMITTED) if i == hops - 1 else ZERO32,
            aux_root=ZERO32,
            prev_commit=signed[-1].commit.digest(DOMAIN) if signed else ZERO32,
            epoch=3,
        )
        signed.append(sign(i, commit))
    return signed


def check(commits: list[SignedCommit | None]) -> list[Fault]:
    return check_route_commits(SPEC, PROMPT, EMITTED, commits, domain=DOMAIN, route=route(len(commits)), model_id=MODEL)


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_an_honest_route_has_no_fault(hops: int) -> None:
    assert check([*commitments(hops)]) == []


FIELDS = [f.name for f in dataclasses.fields(HopCommit)]
FREE = {"epoch", "profile"}
"""Fields no other party of the job can check: the batch binds the epoch and the re-execution the profile."""


def mutate(commit: HopCommit, name: str) -> HopCommit:
    value = getattr(commit, name)
    if name == "lo":
        changed = value + 1
    elif name in ("wire_dtype", "profile"):
        changed = {1: 2, 2: 1, 0: 1}[value]
    elif isinstance(value, int):
        changed = value + 1
    else:
        changed = keccak(value)
    return dataclasses.replace(commit, **{name: changed})


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("name", FIELDS)
def test_every_mutation_of_one_commit_is_seen_and_nobody_else_is_blamed(hop: int, name: str) -> None:
    commits: list[SignedCommit | None] = [*commitments(3)]
    original = commits[hop]
    assert original is not None
    commits[hop] = sign(hop, mutate(original.commit, name))
    faults = check(commits)
    guilty = {h for fault in faults for h in fault.guilty}
    assert guilty <= {hop}
    if hop == 2 and (name in FREE or name == "out_root"):
        # The last hop's output has no receiver: only its batch and the re-execution bind these.
        assert faults == []
        return
    # The next hop's prevCommit names the original, whatever was changed.
    assert faults
    own = {"in_root", "out_root", "prev_commit", "tokens"} | FREE
    if name not in own or (name == "tokens" and hop != 1) or (name == "prev_commit" and hop == 0):
        assert guilty == {hop}
    elif hop < 2:
        assert ("prev-commit", hop + 1) in {(f.kind, f.boundary) for f in faults}


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_missing_and_unsigned_commits(hop: int) -> None:
    commits: list[SignedCommit | None] = [*commitments(3)]
    original = commits[hop]
    assert original is not None
    commits[hop] = None
    assert [(f.kind, f.guilty_hop) for f in check(commits)] == [("missing-commit", hop)]
    commits[hop] = SignedCommit(original.commit, SIGNERS[3].sign(original.commit.digest(DOMAIN)))
    assert [(f.kind, f.guilty_hop) for f in check(commits)] == [("bad-signature", None)]


def test_a_commit_signed_for_another_chain_is_not_signed() -> None:
    commits: list[SignedCommit | None] = [*commitments(2)]
    first = commits[0]
    assert first is not None
    commits[0] = SignedCommit(first.commit, SIGNERS[0].sign(first.commit.digest(Domain(1, DOMAIN.contract))))
    assert [f.kind for f in check(commits)] == ["bad-signature"]


def test_a_wrong_prompt_or_no_output_is_told_apart() -> None:
    commits: list[SignedCommit | None] = [*commitments(2)]
    kwargs = {"domain": DOMAIN, "route": route(2), "model_id": MODEL}
    assert [f.kind for f in check_route_commits(SPEC, [5, 6, 8], EMITTED, commits, **kwargs)] == ["wrong-prompt"]  # type: ignore[arg-type]
    assert [f.kind for f in check_route_commits(SPEC, [5, 6], EMITTED, commits, **kwargs)] == ["wrong-prompt"]  # type: ignore[arg-type]
    assert [f.kind for f in check_route_commits(SPEC, PROMPT, [], commits, **kwargs)] == ["no-output"]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one commit"):
        check_route_commits(SPEC, PROMPT, EMITTED, commits[:1], **kwargs)  # type: ignore[arg-type]


def test_other_output_than_the_client_saw_is_the_last_hops() -> None:
    commits: list[SignedCommit | None] = [*commitments(2)]
    other = [8, 9, 10, 12]
    faults = check_route_commits(SPEC, PROMPT, other, commits, domain=DOMAIN, route=route(2), model_id=MODEL)
    # Only the last, never fed token differs: hop 0's tree is the same.
    assert [(f.kind, f.guilty_hop) for f in faults] == [("tokens-hash", 1)]


# --- boundary disputes
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


# --- equivocation and prevCommit
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


# --- boundary 0
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


FED = fed_ids(PROMPT, EMITTED)


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


def test_input_mismatch_is_only_decided_alone_when_there_is_one_hop() -> None:
    wrong = token_tree(JOB, [4, *FED[1:]]).root()
    for hops, guilty in ((1, 0), (2, None)):
        commits: list[SignedCommit | None] = [*commitments(hops)]
        first = commits[0]
        assert first is not None
        commits[0] = sign(0, dataclasses.replace(first.commit, in_root=wrong))
        found = [f.guilty_hop for f in check(commits) if f.kind == "input-mismatch"]
        assert found == [guilty]


def test_the_token_tree_is_what_hop_0_grows_row_by_row() -> None:
    tree = BoundaryTree(JOB, 0, WireDtype.I32, 1)
    tree.append(ids_bytes(PROMPT))
    for token in EMITTED[:-1]:
        tree.append(ids_bytes([token]))
    assert tree.root() == token_tree(JOB, FED).root()

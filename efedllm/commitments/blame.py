"""Whether the commitments of a route fit together, and who is at fault when they do not.

Pure functions of signed data. A fault names a hop only when the data at hand proves it: a mismatch between two hops
alone does not say which of them lied, so it is returned without a guilty hop and one of the `blame_*` functions
decides it from what both sides can show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, as_address
from efedllm.commitments.leaves import boundary_root, chunk_hash
from efedllm.commitments.messages import EXACT_PROFILE, HopCommit, JobSpec, RouteHop, SignedCommit, ids_bytes, ids_hash
from efedllm.commitments.signing import is_signed_by
from efedllm.errors import ProtocolError


@dataclass(frozen=True)
class Fault:
    """Something wrong with a job. `guilty_hop` is None while the data at hand proves nobody's guilt.

    `boundary` is the boundary it is about, for faults of one hop the boundary that hop reads. `also`: further guilty
    hops.

    Kinds: no-output, wrong-prompt (the given ids are not the job's) | missing-commit, bad-signature, wrong-job,
    wrong-spec, wrong-hop, wrong-layers, wrong-model, wrong-shard, wrong-dtype, wrong-tokens, tokens-hash, aux-root,
    prev-commit, input-mismatch, boundary-mismatch | silent, bad-opening, sender-lied, receiver-lied, both-lied,
    equivocation.
    """

    kind: str
    boundary: int
    guilty_hop: int | None
    detail: str
    also: tuple[int, ...] = ()

    @property
    def guilty(self) -> frozenset[int]:
        """Every guilty hop."""
        return frozenset(self.also if self.guilty_hop is None else (self.guilty_hop, *self.also))


def token_tree(job_id: bytes, ids: npt.ArrayLike) -> BoundaryTree:
    """Boundary 0 of a job over `ids` (prompt, then emitted tokens without the last)."""
    tree = BoundaryTree(job_id, 0, WireDtype.I32, 1)
    data = ids_bytes(ids)
    if data:
        tree.append(data)
    return tree


def fed_ids(prompt_ids: Sequence[int], emitted_ids: Sequence[int]) -> list[int]:
    """The ids of boundary 0: the last sampled token is never fed."""
    return [*prompt_ids, *emitted_ids[:-1]]


def _signed_by(domain: Domain, signed: SignedCommit, signer: str) -> bool:
    return is_signed_by(signed.commit.digest(domain), signed.signature, frozenset({as_address(signer)}))


def check_route_commits(
    spec: JobSpec,
    prompt_ids: Sequence[int],
    emitted_ids: Sequence[int],
    commits: Sequence[SignedCommit | None],
    *,
    domain: Domain,
    route: Sequence[RouteHop],
    model_id: bytes,
) -> list[Fault]:
    """Every fault in the commitments of a finished job; empty when they are whole.

    `commits[i]` is hop i's, None if missing. `emitted_ids` are the tokens the last hop signed to the client.

    Checked per hop: signature, job, signed spec, hop number, layer range, model, shard (where the route knows it), wire
    dtype, token count, tokens hash, aux root. Between hops: prevCommit and boundary roots. At the start: hop 0's inRoot
    against the tree over the prompt and what was emitted. Raises ValueError unless there is one entry per hop.
    """
    if not route or len(commits) != len(route):
        raise ValueError("one commit entry per hop")
    prompt = np.asarray(prompt_ids, dtype=np.int64)
    if len(prompt) != spec.prompt_tokens or ids_hash(prompt) != spec.prompt_hash:
        return [Fault("wrong-prompt", 0, None, "The prompt does not hash to the job's promptHash.")]
    if not emitted_ids and not spec.embeds:
        return [Fault("no-output", 0, None, "No token was emitted, so there is nothing to commit to.")]
    spec_hash = spec.digest(domain)
    faults: list[Fault] = []
    sound: list[HopCommit | None] = []
    for hop, signed in enumerate(commits):
        if signed is None:
            faults.append(Fault("missing-commit", hop, hop, f"Hop {hop} gave no commitment."))
            sound.append(None)
        elif not _signed_by(domain, signed, route[hop].signer):
            # Anyone could have made it: it says nothing about the hop.
            faults.append(Fault("bad-signature", hop, None, f"Hop {hop}'s commitment is not signed by its signer."))
            sound.append(None)
        else:
            sound.append(signed.commit)
            faults += _own_faults(hop, signed.commit, spec, spec_hash, emitted_ids, route, model_id)
    fed = token_tree(spec.job_id, fed_ids(prompt_ids, emitted_ids))
    faults += _count_faults(sound, fed)
    faults += _link_faults(sound, domain)
    first = sound[0]
    if first is not None and first.in_root != fed.root():
        # With several hops the last one may have sent hop 0 other tokens than the client: `blame_tokens` decides.
        guilty = 0 if len(route) == 1 else None
        faults.append(Fault("input-mismatch", 0, guilty, "Hop 0 read other tokens than the prompt and the output."))
    return faults


def _own_faults(
    hop: int,
    commit: HopCommit,
    spec: JobSpec,
    spec_hash: bytes,
    emitted_ids: Sequence[int],
    route: Sequence[RouteHop],
    model_id: bytes,
) -> list[Fault]:
    """What hop's commitment alone gets wrong; the signature proves it is the hop's doing."""
    here = route[hop]
    expected_hash = ids_hash(list(emitted_ids)) if hop == len(route) - 1 else ZERO32
    wrong: list[tuple[str, bool, str]] = [
        ("wrong-job", commit.job_id != spec.job_id, "names another job"),
        ("wrong-spec", commit.spec_hash != spec_hash, "commits to another spec of the job"),
        ("wrong-hop", commit.hop != hop, f"says it is hop {commit.hop}"),
        ("wrong-layers", (commit.lo, commit.hi) != (here.lo, here.hi), f"claims layers {commit.lo}:{commit.hi}"),
        ("wrong-model", commit.model_id != model_id, "names another model"),
        ("wrong-shard", here.shard_root is not None and commit.shard_root != here.shard_root, "names another shard"),
        ("wrong-dtype", commit.wire_dtype != spec.wire_dtype, f"claims wire dtype {commit.wire_dtype}"),
        ("tokens-hash", commit.tokens_hash != expected_hash, "commits to other output tokens"),
        (
            "aux-root",
            (commit.profile != EXACT_PROFILE) != (commit.aux_root == ZERO32),
            "commits to taps in the float profile, or to none in the exact one",
        ),
    ]
    return [Fault(kind, hop, hop, f"Hop {hop} {text}.") for kind, bad, text in wrong if bad]


def _count_faults(sound: Sequence[HopCommit | None], fed: BoundaryTree) -> list[Fault]:
    """Hops that claim another number of positions than the client saw.

    The last hop signed the tokens the client has, and a hop 0 whose inRoot is the client's own tree opened the count
    with it: their guilt is proven. Any other hop may have been sent fewer rows; its boundaries decide.
    """
    faults: list[Fault] = []
    for hop, commit in enumerate(sound):
        if commit is not None and commit.tokens != fed.length:
            proven = hop == len(sound) - 1 or (hop == 0 and commit.in_root == fed.root())
            text = f"Hop {hop} claims {commit.tokens} positions instead of {fed.length}."
            faults.append(Fault("wrong-tokens", hop, hop if proven else None, text))
    return faults


def _link_faults(sound: Sequence[HopCommit | None], domain: Domain) -> list[Fault]:
    faults: list[Fault] = []
    first = sound[0]
    if first is not None and first.prev_commit != ZERO32:
        faults.append(Fault("prev-commit", 0, 0, "Hop 0 names a previous commitment."))
    for hop in range(1, len(sound)):
        before, here = sound[hop - 1], sound[hop]
        if before is None or here is None:
            continue
        if here.prev_commit != before.digest(domain):
            # Either hop lied, or the one before gave it another commitment: `blame_prev_commit` decides.
            faults.append(Fault("prev-commit", hop, None, f"Hop {hop} names another commitment of hop {hop - 1}."))
        if here.in_root != before.out_root or here.tokens != before.tokens:
            faults.append(Fault("boundary-mismatch", hop, None, f"Hops {hop - 1} and {hop} differ on boundary {hop}."))
    return faults


def blame_prev_commit(
    domain: Domain, ours: SignedCommit, hop: int, commit: HopCommit, prev_signer: str, presented: SignedCommit | None
) -> Fault:
    """Who is at fault when `commit` of `hop` names another commitment than `ours`, the one we hold of hop - 1.

    `presented` is the commitment hop shows for its prevCommit. When it is really hop - 1's, that hop signed two for
    one job; otherwise hop invented it. Signatures of `ours` and `commit` must have been checked.
    Raises ProtocolError("no-dispute") when they fit.
    """
    if commit.prev_commit == ours.commit.digest(domain):
        raise ProtocolError("no-dispute", f"Hop {hop} names the commitment we hold.")
    if (
        presented is not None
        and presented.commit.digest(domain) == commit.prev_commit
        and (presented.commit.job_id, presented.commit.hop) == (ours.commit.job_id, ours.commit.hop)
        and _signed_by(domain, presented, prev_signer)
    ):
        return Fault("equivocation", hop, hop - 1, f"Hop {hop - 1} signed two commitments for one job.")
    if presented is None:
        return Fault("silent", hop, hop, f"Hop {hop} does not show the commitment it names.")
    return Fault("prev-commit", hop, hop, f"Hop {hop} names a commitment that hop {hop - 1} did not sign for this job.")


def equivocation(domain: Domain, a: SignedCommit, b: SignedCommit, signer: str | frozenset[str]) -> Fault | None:
    """The fault when one signer signed both of two different commitments for one job and hop, else None. A signer that
    has had several keys may have used any of them, and another one for the second.
    """
    signers = frozenset(map(as_address, (signer,) if isinstance(signer, str) else signer))
    same = (a.commit.job_id, a.commit.hop) == (b.commit.job_id, b.commit.hop)
    if not same or a.commit == b.commit:
        return None
    if not all(is_signed_by(item.commit.digest(domain), item.signature, signers) for item in (a, b)):
        return None
    hop = a.commit.hop
    return Fault("equivocation", hop, hop, f"Hop {hop} signed two commitments for one job.")


@dataclass(frozen=True)
class _Side:
    """One party of a boundary: its opened leaves (None when it is silent or they are not what it committed to)."""

    hop: int
    leaves: tuple[bytes, ...] | None
    failure: str


def _open(hop: int, evidence: BoundaryEvidence | None, job_id: bytes, boundary: int, root: bytes, tokens: int) -> _Side:
    if evidence is None:
        return _Side(hop, None, "silent")
    if len(evidence.leaves) != tokens or boundary_root(job_id, boundary, evidence.leaves) != root:
        return _Side(hop, None, "bad-opening")
    return _Side(hop, evidence.leaves, "")


def _covered(
    evidence: BoundaryEvidence | None,
    leaves: Sequence[bytes],
    job_id: bytes,
    boundary: int,
    signed: Callable[[EnvelopeRecord], bool],
) -> list[bool]:
    """Per position: whether an envelope in `evidence` that passes `signed` holds exactly these leaves."""
    covered = [False] * len(leaves)
    for record in evidence.envelopes if evidence is not None else ():
        e = record.envelope
        if e.job_id != job_id or e.boundary != boundary or e.from_pos + e.n > len(leaves):
            continue
        span = slice(e.from_pos, e.from_pos + e.n)
        if all(covered[span]) or chunk_hash(leaves[span]) != e.chunk_hash:
            continue
        # Last: a signature costs a thousand times a comparison.
        if signed(record):
            covered[span] = [True] * e.n
    return covered


def _by(domain: Domain, keys: str | frozenset[str], side: str) -> Callable[[EnvelopeRecord], bool]:
    signers = frozenset(map(as_address, (keys,) if isinstance(keys, str) else keys))

    def check(record: EnvelopeRecord) -> bool:
        sig = record.sender_sig if side == "sender" else record.receiver_sig
        return sig is not None and is_signed_by(record.envelope.digest(domain), sig, signers)

    return check


def blame_boundary(
    domain: Domain,
    job_id: bytes,
    boundary: int,
    sender_evidence: BoundaryEvidence | None,
    receiver_evidence: BoundaryEvidence | None,
    sender_commit: HopCommit,
    receiver_commit: HopCommit,
    sender_signer: str | frozenset[str],
    receiver_signer: str | frozenset[str],
) -> Fault:
    """Who lied when the sender's outRoot and the receiver's inRoot of `boundary` differ. Evidence is None from a
    silent side. A side that has had several keys may have signed with any of them, each envelope with another.

    Each side must open its own root (silent, or leaves that are not what it committed to: guilty). Then, at every
    position where the two differ, the receiver must show the sender's signature over its version, and the sender the
    receiver's acknowledgement of its own. Who cannot committed to rows it has no right to; and what the other side
    shows proves that one signed something else than it committed to. At least one side is always guilty; an honest
    side, which commits only rows it received signed or saw acknowledged, never is. If one side cannot open its root,
    the other must justify every row. Raises ProtocolError("no-dispute") when the roots agree. Signatures of the
    commitments must have been checked.
    """
    if sender_commit.out_root == receiver_commit.in_root and sender_commit.tokens == receiver_commit.tokens:
        raise ProtocolError("no-dispute", f"Both sides committed to the same boundary {boundary}.")
    sender = _open(sender_commit.hop, sender_evidence, job_id, boundary, sender_commit.out_root, sender_commit.tokens)
    receiver = _open(
        receiver_commit.hop, receiver_evidence, job_id, boundary, receiver_commit.in_root, receiver_commit.tokens
    )
    sender_guilty, receiver_guilty = sender.leaves is None, receiver.leaves is None
    kinds = [side.failure for side in (sender, receiver) if side.leaves is None]
    s, r = sender.leaves or (), receiver.leaves or ()
    shared = min(len(s), len(r))
    disputed = [i for i in range(shared) if s[i] != r[i]] + list(range(shared, max(len(s), len(r))))
    received = _covered(receiver_evidence, r, job_id, boundary, _by(domain, sender_signer, "sender"))
    acked = _covered(sender_evidence, s, job_id, boundary, _by(domain, receiver_signer, "receiver"))
    for i in disputed:
        if i < len(r):
            if received[i]:
                sender_guilty = True
            else:
                receiver_guilty = True
        if i < len(s):
            if acked[i]:
                receiver_guilty = True
            else:
                sender_guilty = True
    if sender_guilty and receiver_guilty:
        kind = kinds[0] if len(set(kinds)) == 1 and len(kinds) == 2 else "both-lied"
        return Fault(kind, boundary, sender.hop, _blame_text(boundary, "Both sides"), (receiver.hop,))
    if sender_guilty:
        return Fault(kinds[0] if kinds else "sender-lied", boundary, sender.hop, _blame_text(boundary, "The sender"))
    return Fault(kinds[0] if kinds else "receiver-lied", boundary, receiver.hop, _blame_text(boundary, "The receiver"))


def _blame_text(boundary: int, who: str) -> str:
    return f"{who} of boundary {boundary} cannot justify the committed rows by signatures."


def blame_tokens(
    domain: Domain,
    spec: JobSpec,
    prompt_ids: Sequence[int],
    emitted_ids: Sequence[int],
    first_commit: HopCommit,
    first_evidence: BoundaryEvidence | None,
    last_evidence: BoundaryEvidence | None,
    first_signer: str,
    last_hop: int,
    last_signer: str,
) -> Fault:
    """Who is at fault when hop 0 read other tokens than the prompt and the output.

    `first_evidence` is hop 0's and `last_evidence` the last hop's, both of boundary 0; of the latter only the
    envelopes count. Hop 0 had the prompt with its signed hash, so prompt rows are its own. Elsewhere the rule is that
    of `blame_boundary`: hop 0 shows the last hop's signature over each token it read, the last hop shows hop 0's
    acknowledgement of each token it sent. Raises ProtocolError("no-dispute") when hop 0's root is right.
    """
    job_id = spec.job_id
    right = token_tree(job_id, fed_ids(prompt_ids, emitted_ids))
    if first_commit.in_root == right.root():
        raise ProtocolError("no-dispute", "Hop 0 read exactly the prompt and the output.")
    side = _open(0, first_evidence, job_id, 0, first_commit.in_root, first_commit.tokens)
    if side.leaves is None:
        return Fault(side.failure, 0, 0, "Hop 0 does not show which tokens it read.")
    ours, theirs = right.leaves, side.leaves
    received = _covered(first_evidence, theirs, job_id, 0, _by(domain, last_signer, "sender"))
    acked = _covered(last_evidence, ours, job_id, 0, _by(domain, first_signer, "receiver"))
    first_guilty, last_guilty = False, False
    for i in range(max(len(ours), len(theirs))):
        if i < len(ours) and i < len(theirs) and ours[i] == theirs[i]:
            continue
        if i < spec.prompt_tokens:
            first_guilty = True
            continue
        if i < len(theirs):
            first_guilty |= not received[i]
            last_guilty |= received[i]
        if i < len(ours):
            first_guilty |= acked[i]
            last_guilty |= not acked[i]
    if first_guilty and last_guilty:
        return Fault("both-lied", 0, 0, f"Neither hop 0 nor hop {last_hop} can justify its tokens.", (last_hop,))
    if last_guilty:
        return Fault("sender-lied", 0, last_hop, f"Hop {last_hop} sent hop 0 other tokens than the client.")
    return Fault("receiver-lied", 0, 0, "Hop 0 read tokens that nobody sent it.")

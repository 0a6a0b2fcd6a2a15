"""Reads the leaves of a node's batch and makes every check that needs no tensor. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain, parse_hex
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm.commitments.messages import EXACT_PROFILE, HopCommit, JobSpec, SessionKey, ids_hash
from efedllm.commitments.signing import check, recover
from efedllm.errors import ProtocolError
from efedllm_verifier.statistic import Outcome


@dataclass(frozen=True)
class JobTerms:
    """The payment channel with its route, and the job with the client's signature."""

    key: SessionKey
    spec: JobSpec
    signature: bytes


@dataclass(frozen=True)
class Leaf:
    """One hop of one job as the node committed to it. `hash` is the Merkle leaf. `emitted`: generated ids, last hop
    only. `defect` says why the rest of the leaf is unreadable; the commit itself is always readable."""

    commit: HopCommit
    signature: bytes
    hash: bytes
    terms: JobTerms | None = None
    prompt: tuple[int, ...] | None = None
    emitted: tuple[int, ...] | None = None
    defect: str = ""


@dataclass(frozen=True)
class Registration:
    """What the chain says about the audited node around the epoch. `layers`, `hidden`: of the whole model, `profile` 0
    float, 1 exact.
    """

    node: str
    signers: frozenset[str]
    model_id: bytes
    lo: int
    hi: int
    shard_root: bytes
    layers: int
    hidden: int
    profile: int = 0


@dataclass(frozen=True)
class LeafFault:
    """Why a leaf failed. `code` is stable, `detail` for people."""

    code: str
    detail: str
    outcome: Outcome = Outcome.FAIL


def parse_batch(value: Mapping[str, Any], domain: Domain, node: str, epoch: int, seq: int) -> tuple[bytes, list[Leaf]]:
    """Root and leaves of a batch as a node serves it; the root is recomputed, never taken from the answer.

    Raises ProtocolError when a commit or salt is unreadable: such a batch has no root.
    """
    items = value.get("leaves")
    if not isinstance(items, list):
        raise ProtocolError("bad-batch", "A batch must list its leaves.")
    leaves = [_parse_leaf(item, domain) for item in items]
    return batch_root(node, epoch, seq, [leaf.hash for leaf in leaves]), leaves


def committed_leaves(
    value: Mapping[str, Any], domain: Domain, node: str, epoch: int, seq: int, root: bytes, count: int
) -> list[Leaf]:
    """Leaves of a batch as a node serves it, when they are the `count` ones under its `root` on chain.

    Raises ProtocolError "bad-batch" when the answer has no root, "other-root" when it has another one.
    """
    found, leaves = parse_batch(value, domain, node, epoch, seq)
    if found != root or len(leaves) != count:
        raise ProtocolError("other-root", "These leaves are not the ones that the node posted.")
    return leaves


def _parse_leaf(item: object, domain: Domain) -> Leaf:
    if not isinstance(item, dict):
        raise ProtocolError("bad-batch", "A leaf must be an object.")
    commit = HopCommit.from_json(item.get("commit"))
    digest = hop_leaf(commit.digest(domain), parse_hex(item.get("salt"), "salt", 32))
    signature = b""
    try:
        signature = parse_hex(item.get("signature"), "signature", 65)
        job = item.get("job")
        if not isinstance(job, dict):
            raise ProtocolError("bad-batch", "The leaf does not name its job.")
        terms = JobTerms(
            SessionKey.from_json(job.get("session_key")),
            JobSpec.from_json(job.get("job_spec")),
            parse_hex(job.get("spec_signature"), "spec_signature", 65),
        )
        return Leaf(commit, signature, digest, terms, _ids(item.get("prompt")), _ids(item.get("emitted")))
    except ProtocolError as error:
        return Leaf(commit, signature, digest, defect=error.message)


def _ids(value: object) -> tuple[int, ...] | None:
    """Token ids from base64 of little-endian int32, or from a list of integers."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
            return tuple(int(item) for item in np.frombuffer(data, dtype="<i4"))
        except (binascii.Error, ValueError):
            raise ProtocolError("bad-batch", "Token ids must be base64 of whole int32 numbers.") from None
    # Larger numbers would overflow arrays later, and a node whose audit fails on our side is not judged.
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 31 for item in value):
        return tuple(value)
    raise ProtocolError("bad-batch", "Token ids must be base64 or a list of integers.")


def check_leaf(
    leaf: Leaf, epoch: int, registration: Registration, domain: Domain, escrow: tuple[int, str]
) -> LeafFault | None:
    """Signatures, identities, registered shard and lengths of one leaf of the batch of `epoch`.

    escrow: (chain id, SessionEscrow). The first fault found, or None.
    """
    commit, terms = leaf.commit, leaf.terms
    if terms is None:
        return LeafFault("unreadable-leaf", leaf.defect)
    try:
        signer = recover(commit.digest(domain), leaf.signature)
    except ProtocolError as error:
        return LeafFault("commit-signature", error.message)
    if signer not in registration.signers:
        return LeafFault("commit-signature", f"the commit is signed by {signer}")
    served = (registration.model_id, registration.lo, registration.hi, registration.shard_root)
    exact = commit.profile == EXACT_PROFILE
    shown = (commit.model_id, commit.lo, commit.hi, commit.shard_root)
    if shown != served or exact != (registration.profile == EXACT_PROFILE):
        return LeafFault("wrong-shard", f"layers {commit.lo}:{commit.hi} are not the registered shard")
    if exact and commit.wire_dtype != WireDtype.F32:
        return LeafFault("wrong-wire", "the rows of an exact model were rounded on the wire")
    if not exact and commit.aux_root != ZERO32:
        return LeafFault("wrong-aux", "a float model has no taps to commit to")
    if not epoch - 1 <= commit.epoch <= epoch:
        return LeafFault("wrong-epoch", f"a commit of epoch {commit.epoch} in the batch of epoch {epoch}")
    return _check_terms(leaf, terms, registration, domain, escrow) or _check_lengths(leaf, terms.spec, registration)


def _check_terms(
    leaf: Leaf, terms: JobTerms, registration: Registration, domain: Domain, escrow: tuple[int, str]
) -> LeafFault | None:
    commit, key, spec = leaf.commit, terms.key, terms.spec
    digest = spec.digest(domain)
    try:
        check(digest, terms.signature, key.signer)
    except ProtocolError as error:
        return LeafFault("job-signature", error.message)
    if key.session_id(*escrow) != spec.session_id or spec.job_id != commit.job_id:
        return LeafFault("foreign-job", "the job does not belong to the session the leaf shows")
    if digest != commit.spec_hash:
        # Not severe: HTTP answers are unsigned, so somebody on the way could have replaced the spec.
        return LeafFault("wrong-spec", "the job that the leaf shows is not the one that the commit names")
    if commit.hop >= len(key.nodes) or key.nodes[commit.hop] != registration.node:
        return LeafFault("foreign-job", f"hop {commit.hop} of the session is not this node")
    if key.model_id != commit.model_id or spec.wire_dtype != commit.wire_dtype:
        return LeafFault("foreign-job", "model or wire dtype differ from what the client signed")
    ends = (commit.hop == 0, commit.hop == len(key.nodes) - 1)
    if ends != (registration.lo == 0, registration.hi == registration.layers):
        return LeafFault(
            "wrong-shard", f"hop {commit.hop} of {len(key.nodes)} cannot be layers {commit.lo}:{commit.hi}"
        )
    return None


def _check_lengths(leaf: Leaf, spec: JobSpec, registration: Registration) -> LeafFault | None:
    commit = leaf.commit
    if not 1 <= commit.tokens <= spec.most_positions:
        return LeafFault("wrong-length", f"{commit.tokens} positions for a prompt of {spec.prompt_tokens}")
    if spec.embeds and commit.tokens != spec.prompt_tokens:
        return LeafFault("wrong-length", f"{commit.tokens} positions of a text of {spec.prompt_tokens}")
    if registration.hi != registration.layers:
        return None if commit.tokens_hash == ZERO32 else LeafFault("tokens-hash", "only the last hop emits tokens")
    if leaf.emitted is None:
        return LeafFault("tokens-hash", "the last hop does not show the emitted tokens")
    try:
        if ids_hash(leaf.emitted) != commit.tokens_hash:
            return LeafFault("tokens-hash", "the emitted tokens are not the committed ones", Outcome.SEVERE)
    except ProtocolError as error:
        return LeafFault("tokens-hash", error.message)
    # A cancelled job may have fed its newest token without sampling the next one, or not finished its prompt.
    most = 0 if spec.embeds else max(0, commit.tokens - spec.prompt_tokens + 1)
    if not max(0, most - 1) <= len(leaf.emitted) <= most:
        return LeafFault("wrong-length", f"{len(leaf.emitted)} emitted tokens for {commit.tokens} positions")
    if spec.eos_token in leaf.emitted[:-1]:
        return LeafFault("ran-past-eos", "tokens were emitted after the end-of-sequence token")
    return None

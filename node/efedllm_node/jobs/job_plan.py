"""The trees and streams of a job at one hop, built once from what the client signed, and the job's progress."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.evidence import EnvelopeRecord
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.leaves import act_leaf, chunk_hash
from efedllm.commitments.messages import RouteHop
from efedllm.commitments.signing import Signer
from efedllm.commitments.taps import TapTree
from efedllm.engine.taps import TAP_BYTES
from efedllm.sampling.float import SamplingSpec
from efedllm_node.compute.work_item import Inputs, WorkSpec
from efedllm_node.facts import NodeFacts
from efedllm_node.jobs.boundary_streams import Inbound, Lane, Outbound
from efedllm_node.jobs.own_commit import OwnHop
from efedllm_node.storage.records import OpenedJob


@dataclass
class JobPlan:
    """One hop's ends of its boundaries.

    `inbound`: rows from the previous hop, or on hop 0 tokens from the last; None where none come. `outbound`: rows to
    the next hop, or on the last hop tokens to hop 0 (to the client on a route of one node), or the rows of an embedding
    to the client. `following`: the hop that acknowledges what goes out, None where that is the client. `taps`: of an
    exact model.
    """

    in_tree: BoundaryTree
    out_tree: BoundaryTree
    inbound: Inbound | None
    outbound: Outbound
    work: WorkSpec
    previous: RouteHop | None
    following: RouteHop | None
    taps: TapTree | None

    @property
    def envelopes(self) -> tuple[EnvelopeRecord, ...]:
        """All evidence of both boundaries."""
        return (self.inbound.records if self.inbound is not None else ()) + self.outbound.records


@dataclass
class Progress:
    """Where a job stands. `given`: positions handed to the engine, `done`: come back from it; `tokens`: sampled (last
    hop) or received (hop 0). `stopping`: no further rows come; `stop_passed`: the next hop knows. `finished`: why
    generation ended, on hop 0 and the last hop.
    """

    given: int = 0
    done: int = 0
    tokens: list[int] = field(default_factory=list)
    held: deque[Inputs] = field(default_factory=deque)
    started: bool = False
    stopping: bool = False
    stop_passed: bool = False
    finished: str | None = None

    @property
    def held_positions(self) -> int:
        """Positions that wait for payment, or for the rest of their text."""
        return sum(map(len, self.held))

    @property
    def busy(self) -> bool:
        """Whether positions are in the engine or wait for it."""
        return self.given != self.done or bool(self.held)


def plan_job(record: OpenedJob, client_signer: str, facts: NodeFacts, domain: Domain, signer: Signer) -> JobPlan:
    """The trees and streams of one hop of a job."""
    spec, hop, last = record.spec, record.hop, record.hops - 1
    dtype = WireDtype(spec.wire_dtype)
    # Tokens close a ring from the last hop to the first; an embedding goes to the client alone.
    ring = last > 0 and not spec.embeds
    previous = record.route[hop - 1] if hop > 0 else record.route[last] if ring else None
    following = record.route[hop + 1] if hop < last else record.route[0] if ring else None

    def lane(boundary: int, other: str) -> Lane:
        token = boundary == 0
        return Lane(
            domain, record.job_id, boundary, WireDtype.I32 if token else dtype, 1 if token else facts.hidden, other
        )

    in_dtype, in_dim = (WireDtype.I32, 1) if hop == 0 else (dtype, facts.hidden)
    inbound = None
    if previous is not None:
        inbound = Inbound(lane(hop, previous.signer), signer, spec.prompt_tokens if hop == 0 else 0)
    receiver = client_signer if following is None else following.signer
    emits = hop == last and not spec.embeds
    outbound = (
        Outbound(lane(0, receiver), signer, spec.prompt_tokens)
        if emits
        else Outbound(lane(hop + 1, receiver), signer, 0)
    )
    return JobPlan(
        in_tree=BoundaryTree(record.job_id, hop, in_dtype, in_dim),
        out_tree=BoundaryTree(record.job_id, hop + 1, dtype, facts.hidden),
        inbound=inbound,
        outbound=outbound,
        work=WorkSpec(
            dtype,
            spec.prompt_tokens - 1 if emits else None,
            SamplingSpec.from_job(spec),
        ),
        previous=previous,
        following=following,
        taps=TapTree(record.job_id, hop, TAP_BYTES) if facts.exact else None,
    )


def token_row(token: int) -> bytes:
    """Canonical bytes of one token id."""
    return encode(np.array([[token]], dtype=np.int32), WireDtype.I32)


def token_chunk(job_id: bytes, position: int, row: bytes) -> bytes:
    """Chunk hash of one token's envelope."""
    return chunk_hash([act_leaf(job_id, 0, position, WireDtype.I32, 1, row)])


def own_hop(record: OpenedJob, plan: JobPlan, progress: Progress, facts: NodeFacts, domain: Domain) -> OwnHop:
    """What this hop commits to, once both boundaries are complete."""
    return OwnHop(
        job_id=record.job_id,
        spec_hash=record.spec.digest(domain),
        hop=record.hop,
        lo=facts.lo,
        hi=facts.hi,
        wire_dtype=record.spec.wire_dtype,
        model_id=facts.model_id,
        shard_root=facts.shard_root,
        tokens=plan.in_tree.length,
        in_root=plan.in_tree.root(),
        out_root=plan.out_tree.root(),
        emitted=tuple(progress.tokens) if record.hop == record.hops - 1 else None,
        profile=facts.profile,
        aux_root=ZERO32 if plan.taps is None else plan.taps.root(),
    )

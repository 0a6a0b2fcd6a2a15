"""One hop of a finished job, served again by the code of a node and audited again by the code of a verifier.

Both compute, hash, sign and check as in production, without sockets and disk, so that their time can be measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np

from efedllm.commitments.boundary import BoundaryTree, verify_boundary
from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.evidence import BoundaryEvidence
from efedllm.commitments.signing import Signer
from efedllm.commitments.taps import TapTree
from efedllm.engine.protocol import Executor, Sequence, StepItem, constants_of
from efedllm.engine.taps import TAP_BYTES, TapExecutor
from efedllm.sampling.float import SamplingSpec
from efedllm.wire.messages import AckMsg, ActMsg
from efedllm_bench.attacks.lab import DOMAIN, EPOCH, ESCROW, RANGES, SIGNERS, Lab, LabJob, Rows
from efedllm_node.jobs.boundary_streams import Inbound, Lane, Outbound
from efedllm_node.jobs.job_plan import token_chunk
from efedllm_verifier.leaf import Leaf, Registration, check_leaf
from efedllm_verifier.neighbour_checks import unsigned_positions
from efedllm_verifier.rerun import HopResult, rerun


@dataclass(frozen=True)
class Traffic:
    """What the other parties send the hop: rows (none: it has them already) and acknowledgements, in order."""

    rows: tuple[ActMsg, ...]
    acks: tuple[AckMsg, ...]


class ServedHop:
    """`compute` runs the layers, of the last hop with its sampling; `serve` does that and all that goes with it."""

    def __init__(self, lab: Lab, job: LabJob, hop: int) -> None:
        self._lab, self._job, self._hop = lab, job, hop
        self._last = hop == len(RANGES) - 1
        self._prompt = len(job.prompt)
        self._spec = SamplingSpec.from_job(job.spec)
        self._traffic = self._rehearse()

    def compute(self) -> None:
        sequence, inputs = self._engine.new_sequence(), self._lab.inputs(self._job, self._hop)
        for start, end in self._cuts():
            states, _ = stepped(self._engine, sequence, inputs[start:end])
            if self._last:
                self._lab.choose(self._engine, np.ascontiguousarray(states[-1:]), self._spec, end)

    def serve(self) -> BoundaryEvidence:
        """What the hop can show of the boundary it read."""
        job, lab = self._job, self._lab
        sequence, inputs = self._engine.new_sequence(), lab.inputs(job, self._hop)
        into, out, taps = (
            self._tree(self._hop),
            self._tree(self._hop + 1),
            TapTree(job.spec.job_id, self._hop, TAP_BYTES),
        )
        inbound, outbound = self._inbound(), self._outbound(SIGNERS[self._hop])
        rows, acks = iter(self._traffic.rows), iter(self._traffic.acks)
        for start, end in self._cuts():
            given = inputs[start:end]
            if self._hop == 0 and start == 0:
                into.append(encode(given.reshape(-1, 1), WireDtype.I32))
            else:
                act = next(rows)
                given = decode(act.payload, act.dtype, act.dim)
                given = given[:, 0] if self._hop == 0 else given
                inbound.check(act, job.positions, self._prompt)
                inbound.accept(act, into.append(act.payload))
            states, tapped = stepped(self._engine, sequence, given)
            payload = encode(states, job.wire)
            chunk = out.append(payload)
            taps.append(tapped)
            if self._last:
                hidden = decode(payload, job.wire, lab.hidden)[-1:]
                token = lab.choose(self._engine, np.ascontiguousarray(hidden), self._spec, end)
                payload = np.array([token], "<i4").tobytes()
                chunk = token_chunk(job.spec.job_id, end, payload)
            outbound.emit(payload, 1 if self._last else end - start, chunk)
            outbound.acknowledged(next(acks))
        into.root(), out.root(), taps.root()
        return BoundaryEvidence(into.leaves, inbound.records)

    @property
    def _engine(self) -> Executor:
        return self._lab.engines[self._hop]

    def _rehearse(self) -> Traffic:
        """The messages of the neighbours, made by their own code."""
        job, hop = self._job, self._hop
        before, after = self._whole(hop), self._whole(hop + 1)
        sender = Outbound(self._lane(hop, SIGNERS[hop].address), SIGNERS[hop - 1], self._first)
        receiver = Inbound(
            self._out_lane(SIGNERS[hop].address), SIGNERS[self._after], self._prompt if self._last else 0
        )
        own, rows, acks = self._outbound(SIGNERS[hop]), [], []
        for start, end in self._cuts():
            if start >= self._first:
                payload = job.boundaries[hop][start * before.row_bytes : end * before.row_bytes]
                rows.append(sender.emit(payload, end - start, before.chunk(start, end - start)))
            if self._last:
                payload = np.array([job.emitted[end - self._prompt]], "<i4").tobytes()
                act = own.emit(payload, 1, token_chunk(job.spec.job_id, end, payload))
            else:
                payload = job.boundaries[hop + 1][start * after.row_bytes : end * after.row_bytes]
                act = own.emit(payload, end - start, after.chunk(start, end - start))
            chunk = own.records[-1].envelope.chunk_hash
            receiver.check(act, job.positions + 1, self._prompt)
            acks.append(receiver.accept(act, chunk))
        return Traffic(tuple(rows), tuple(acks))

    def _cuts(self) -> list[tuple[int, int]]:
        """Positions of the steps: the prompt, then one at a time."""
        return [(0, self._prompt), *((at, at + 1) for at in range(self._prompt, self._job.positions))]

    @property
    def _first(self) -> int:
        """The first position that somebody sends."""
        return self._prompt if self._hop == 0 else 0

    @property
    def _after(self) -> int:
        return 0 if self._last else self._hop + 1

    def _whole(self, boundary: int) -> BoundaryTree:
        tree = self._tree(boundary)
        tree.append(self._job.boundaries[boundary])
        return tree

    def _tree(self, boundary: int) -> BoundaryTree:
        return BoundaryTree(self._job.spec.job_id, boundary, *wire_of(self._lab, self._job, boundary))

    def _lane(self, boundary: int, other: str) -> Lane:
        return Lane(DOMAIN, self._job.spec.job_id, boundary, *wire_of(self._lab, self._job, boundary), other)

    def _out_lane(self, other: str) -> Lane:
        return self._lane(0 if self._last else self._hop + 1, other)

    def _inbound(self) -> Inbound:
        return Inbound(self._lane(self._hop, SIGNERS[self._hop - 1].address), SIGNERS[self._hop], self._first)

    def _outbound(self, signer: Signer) -> Outbound:
        return Outbound(self._out_lane(SIGNERS[self._after].address), signer, self._prompt if self._last else 0)


@dataclass(frozen=True)
class LeafAudit:
    """What a verifier has of one leaf once everything is fetched; `shown` is the node's JSON about what it read."""

    lab: Lab
    job: LabJob
    hop: int
    leaf: Leaf
    registration: Registration
    shown: str

    @classmethod
    def of(cls, lab: Lab, job: LabJob, hop: int, evidence: BoundaryEvidence) -> Self:
        return cls(lab, job, hop, lab.leaf(job, hop), lab.registration(hop), json.dumps(evidence.to_json()))

    def compute(self) -> HopResult:
        """Prefill, comparison and, on the last hop, the tokens."""
        engine, boundaries = self.lab.engines[self.hop], self.job.boundaries
        return rerun(engine, self.leaf, self.job.spec, boundaries[self.hop], boundaries[self.hop + 1])

    def trees(self) -> bool:
        """Whether the bytes are under the committed roots."""
        roots = (self.leaf.commit.in_root, self.leaf.commit.out_root)
        return all(
            verify_boundary(self.job.spec.job_id, at, *wire_of(self.lab, self.job, at), self.job.boundaries[at], root)
            for at, root in zip((self.hop, self.hop + 1), roots, strict=True)
        )

    def signed(self) -> bool:
        """The leaf's own signatures, and those of the hop before over what this one read."""
        if check_leaf(self.leaf, EPOCH, self.registration, DOMAIN, ESCROW) is not None:
            return False
        job_id = self.job.spec.job_id
        tree = BoundaryTree(job_id, self.hop, *wire_of(self.lab, self.job, self.hop))
        tree.append(self.job.boundaries[self.hop])
        evidence = BoundaryEvidence.from_json(json.loads(self.shown), job_id, self.hop)
        start = len(self.job.prompt) if self.hop == 0 else 0
        return not unsigned_positions(DOMAIN, tree.leaves, start, evidence, frozenset({SIGNERS[self.hop - 1].address}))

    def whole(self) -> None:
        """All of it. AssertionError when an honest hop fails."""
        assert self.trees()
        assert self.signed()
        assert self.compute().fault is None


def wire_of(lab: Lab, job: LabJob, boundary: int) -> tuple[WireDtype, int]:
    return (WireDtype.I32, 1) if boundary == 0 else (job.wire, lab.hidden)


def stepped(engine: Executor, sequence: Sequence, inputs: Any) -> tuple[Rows, bytes]:
    """States and, of an exact engine, the taps: as the nodes of such a model step."""
    item = StepItem(sequence, inputs)
    if constants_of(engine) is None:
        return engine.step([item])[0], b""
    (tapped,) = cast(TapExecutor, engine).step_with_taps([item])
    return tapped.states, tapped.taps.tobytes()

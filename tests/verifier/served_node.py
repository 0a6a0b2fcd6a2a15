"""A node's public HTTP interface over jobs made in a test: signed commits, batches, boundaries, envelopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, itemsize
from efedllm.commitments.eip712 import to_hex
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm.commitments.messages import (
    Domain,
    Envelope,
    HopCommit,
    JobSpec,
    SessionKey,
    SignedCommit,
    signed_job_json,
)
from efedllm.commitments.signing import Signer
from tests.verifier.audit_lab import Trace, hop_commit


@dataclass(frozen=True)
class Job:
    """One finished job of a route: what was signed, and every byte. `signers[i]` is the key of hop i's node."""

    domain: Domain
    key: SessionKey
    client: Signer
    spec: JobSpec
    trace: Trace
    layers: tuple[tuple[int, int], ...]
    signers: tuple[Signer, ...]
    shard_roots: tuple[bytes, ...]
    hidden: int
    epoch: int

    @property
    def hops(self) -> int:
        return len(self.layers)

    def commit(self, hop: int) -> HopCommit:
        prev = ZERO32 if hop == 0 else self.commit(hop - 1).digest(self.domain)
        return hop_commit(
            self.spec,
            hop,
            self.hops,
            self.layers[hop],
            self.trace,
            self.hidden,
            model_id=self.key.model_id,
            shard_root=self.shard_roots[hop],
            prev=prev,
            epoch=self.epoch,
            domain=self.domain,
        )

    def tree(self, boundary: int) -> BoundaryTree:
        dtype, dim = self.shape(boundary)
        tree = BoundaryTree(self.spec.job_id, boundary, dtype, dim)
        tree.append(self.trace.boundaries[boundary])
        return tree

    def shape(self, boundary: int) -> tuple[WireDtype, int]:
        return (WireDtype.I32, 1) if boundary == 0 else (WireDtype(self.spec.wire_dtype), self.hidden)

    def evidence(self, boundary: int) -> BoundaryEvidence:
        """The prompt in one envelope and every later position in its own, signed by both sides."""
        tree = self.tree(boundary)
        prompt = self.spec.prompt_tokens
        spans = [(0, prompt)] if boundary else []
        spans += [(at, 1) for at in range(prompt, tree.length)]
        sender = self.signers[boundary - 1]
        receiver = self.signers[boundary % self.hops]
        prev, records = ZERO32, []
        for start, n in spans:
            envelope = Envelope(self.spec.job_id, boundary, start, n, tree.chunk(start, n), prev)
            prev = envelope.digest(self.domain)
            records.append(EnvelopeRecord(envelope, sender.sign(prev), receiver.sign(prev)))
        return BoundaryEvidence(tree.leaves, tuple(records))

    def leaf_json(self, hop: int, salt: bytes) -> dict[str, Any]:
        commit = self.commit(hop)
        last = hop == self.hops - 1
        return {
            "commit": commit.to_json(),
            "signature": to_hex(self.signers[hop].sign(commit.digest(self.domain))),
            "salt": to_hex(salt),
            "job": signed_job_json(self.key, self.spec, self.client.sign(self.spec.digest(self.domain))),
            "emitted": list(self.trace.emitted) if last else None,
            "route": [],
        }


@dataclass
class Lies:
    """What a node refuses or falsifies. `boundaries`: roots it does not serve; `edit_leaf` changes a leaf as served,
    `edit_commit` what it answers for a receipt. `previous`: what it shows as the commitment of the hop before.
    """

    batches: bool = False
    boundaries: bool = False
    evidence: bool = False
    edit_leaf: Callable[[dict[str, Any]], None] | None = None
    previous: SignedCommit | None = None
    edit_commit: Callable[[HopCommit], HopCommit] | None = None


@dataclass
class ServedNode:
    """Serves hop `hop` of `jobs` as the node at `address`. Use as an async context manager; `url` is then set."""

    address: str
    hop: int
    jobs: Sequence[Job]
    lies: Lies = field(default_factory=Lies)
    url: str = ""
    requests: list[str] = field(default_factory=list)

    @staticmethod
    def salt(index: int) -> bytes:
        return keccak(b"salt" + bytes([index]))

    def leaves(self, domain: Domain) -> list[bytes]:
        return [hop_leaf(job.commit(self.hop).digest(domain), self.salt(i)) for i, job in enumerate(self.jobs)]

    def batch_root(self, domain: Domain, epoch: int, seq: int) -> bytes:
        return batch_root(self.address, epoch, seq, self.leaves(domain))

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/batches/{seq}", self._batch),
                web.get("/v1/boundaries/{root}", self._boundary),
                web.get("/v1/jobs/{job}/evidence", self._evidence),
                web.get("/v1/jobs/{job}/receipt", self._receipt),
                web.get("/v1/jobs/{job}/previous", self._previous),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _batch(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.lies.batches:
            raise web.HTTPNotFound
        leaves = [job.leaf_json(self.hop, self.salt(index)) for index, job in enumerate(self.jobs)]
        for leaf in leaves if self.lies.edit_leaf else ():
            assert self.lies.edit_leaf is not None
            self.lies.edit_leaf(leaf)
        return web.json_response({"seq": int(request.match_info["seq"]), "leaves": leaves})

    async def _boundary(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        for job in () if self.lies.boundaries else self.jobs:
            for boundary in (self.hop, self.hop + 1):
                if job.tree(boundary).root().hex() == request.match_info["root"]:
                    return web.Response(body=job.trace.boundaries[boundary])
        raise web.HTTPNotFound

    def _job(self, request: web.Request) -> Job:
        self.requests.append(request.path)
        for job in self.jobs:
            if job.spec.job_id.hex() == request.match_info["job"]:
                return job
        raise web.HTTPNotFound

    async def _evidence(self, request: web.Request) -> web.Response:
        job, boundary = self._job(request), int(request.query["boundary"])
        if self.lies.evidence:
            raise web.HTTPNotFound
        return web.json_response(job.evidence(boundary).to_json())

    async def _receipt(self, request: web.Request) -> web.Response:
        commit = (job := self._job(request)).commit(self.hop)
        if self.lies.edit_commit is not None:
            commit = self.lies.edit_commit(commit)
        signature = job.signers[self.hop].sign(commit.digest(job.domain))
        return web.json_response({"commit": commit.to_json(), "signature": to_hex(signature)})

    async def _previous(self, request: web.Request) -> web.Response:
        self._job(request)
        if self.lies.previous is None:
            raise web.HTTPNotFound
        return web.json_response(self.lies.previous.to_json())


def rewritten(trace: Trace, boundary: int, payload: bytes) -> Trace:
    """`trace` with other bytes at one boundary."""
    boundaries = list(trace.boundaries)
    boundaries[boundary] = payload
    return replace(trace, boundaries=tuple(boundaries))


def row_bytes(wire: WireDtype, hidden: int) -> int:
    return itemsize(wire) * hidden

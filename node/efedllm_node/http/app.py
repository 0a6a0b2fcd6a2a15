"""The node's HTTP application: batches and rows for auditors, model files, status, metrics, and the WebSocket."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import to_hex
from efedllm.commitments.evidence import BoundaryEvidence
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import signed_job_json
from efedllm.errors import EfedError, ModelError, ProtocolError
from efedllm.logs import get_logger
from efedllm.models.manifest import MANIFEST_NAME, Manifest
from efedllm.wire import WS_PATH, Identity, accept, handshake
from efedllm_node.compute.trace_files import IN, OUT, TAPS
from efedllm_node.http.tap_release import open_taps, taps_open
from efedllm_node.jobs.dispatcher import Dispatcher
from efedllm_node.jobs.peers import Link, pump
from efedllm_node.storage.records import BatchRecord, BoundaryPlace, LeafRecord

HEAVY = 2  # answers made at once that take much time or memory
MOST_TAPS = 64  # positions opened in one answer

Info = Callable[[], Awaitable[dict[str, Any]]]


def make_app(
    dispatcher: Dispatcher, identity: Identity, model_dir: Path, manifest: Manifest, info: Info
) -> web.Application:
    """The node's HTTP application."""
    pages = Pages(dispatcher, identity, model_dir, manifest, info)
    app = web.Application(client_max_size=1 << 16, middlewares=[_errors])
    app.add_routes(
        [
            web.get(WS_PATH, pages.websocket),
            web.get("/v1/info", pages.info),
            web.get("/v1/batches/{seq}", pages.batch),
            web.get("/v1/boundaries/{root}", pages.boundary),
            web.get("/v1/jobs/{job_id}/evidence", pages.evidence),
            web.get("/v1/jobs/{job_id}/receipt", pages.receipt),
            web.get("/v1/jobs/{job_id}/previous", pages.previous),
            web.get("/v1/jobs/{job_id}/taps", pages.taps),
            web.get("/v1/model/manifest.json", pages.manifest),
            web.get("/v1/model/files/{name}", pages.file),
            web.get("/metrics", pages.metrics),
            web.get("/healthz", pages.health),
        ]
    )
    return app


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except EfedError as error:
        status = 404 if error.code in ("not-found", "no-trace", "no-such-file") else 400
        body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        return web.json_response(body, status=status)


def _h32(text: str, name: str) -> bytes:
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ProtocolError("bad-request", f"{name} must be 64 hex digits.")
    return value


def _positions(text: str) -> tuple[int, ...]:
    """Ascending, without repetition."""
    parts = text.split(",")
    if len(parts) > MOST_TAPS or not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise ProtocolError("bad-request", f"Say which positions: ?positions=1,5,9, at most {MOST_TAPS}.")
    return tuple(sorted({int(part) for part in parts}))


def _missing(what: str) -> ProtocolError:
    return ProtocolError("not-found", f"This node has no {what}.")


class Pages:
    """The handlers."""

    def __init__(
        self, dispatcher: Dispatcher, identity: Identity, model_dir: Path, manifest: Manifest, info: Info
    ) -> None:
        self._dispatcher = dispatcher
        self._services = dispatcher.services
        self._identity = identity
        self._model_dir = model_dir
        self._manifest = manifest
        self._info = info
        self._heavy = asyncio.Semaphore(HEAVY)
        self._log = get_logger("http")

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """Clients and other nodes."""
        if self._dispatcher.connections >= self._services.limits.max_connections:
            return web.json_response({"error": {"code": "busy", "message": "Too many connections."}}, status=503)
        peer = await accept(request, stats=self._services.metrics.wire)
        try:
            remote = await handshake(peer, self._identity)
        except ProtocolError as error:
            self._log.info("handshake failed", peer=peer.name, code=error.code)
            await peer.close()
            return cast(web.WebSocketResponse, peer.socket)
        link = Link(peer, remote)
        self._dispatcher.welcome(link)
        try:
            await pump(link, self._dispatcher)
        finally:
            self._dispatcher.farewell(link)
            await peer.close()
        return cast(web.WebSocketResponse, peer.socket)

    async def info(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._info())

    async def health(self, _request: web.Request) -> web.Response:
        draining = self._dispatcher.draining
        return web.json_response({"status": "draining" if draining else "ok"}, status=503 if draining else 200)

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._services.metrics.render(), content_type="text/plain", charset="utf-8")

    async def batch(self, request: web.Request) -> web.Response:
        """A posted batch with everything an auditor needs to repeat its hops."""
        text = request.match_info["seq"]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise ProtocolError("bad-request", "The sequence number must be a number.")
        found = await self._services.store.posted(int(text))
        if found is None:
            raise _missing(f"batch {text}")
        batch, leaves = found
        if len(leaves) != batch.count:
            raise _missing(f"complete batch {text} any more")
        async with self._heavy:
            # Thousands of leaves: written on another thread, or every job would wait for it.
            body = await asyncio.to_thread(_batch_json, batch, leaves)
        return web.Response(body=body, content_type="application/json")

    async def boundary(self, request: web.Request) -> web.StreamResponse:
        """Rows by their root."""
        place = await self._services.store.boundary_by_root(_h32(request.match_info["root"], "root"))
        if place is None:
            raise _missing("such boundary")
        dtype, dim = self._shape(place)
        headers = {
            "X-Job": to_hex(place.job_id),
            "X-Boundary": str(place.boundary),
            "X-Dtype": str(int(dtype)),
            "X-Dim": str(dim),
            "X-Count": str(place.count),
        }
        # From the disk as it is read: rows are large, and readers may be slow and many.
        path = self._services.traces.path(place.job_id, IN if place.incoming else OUT)
        if not path.is_file():
            raise ModelError("no-trace", f"The trace of job 0x{place.job_id.hex()} is not kept.")
        headers["Content-Type"] = "application/octet-stream"
        return web.FileResponse(path, headers=headers)

    async def evidence(self, request: web.Request) -> web.Response:
        """Leaves and doubly signed envelopes of one boundary of a committed job."""
        job_id = _h32(request.match_info["job_id"], "job_id")
        text = request.query.get("boundary", "")
        if not text.isascii() or not text.isdigit() or len(text) > 5:
            raise ProtocolError("bad-request", "Say which boundary: ?boundary=NUMBER.")
        boundary = int(text)
        place = await self._services.store.boundary_of(job_id, boundary)
        envelopes = tuple(await self._services.store.evidence(job_id, boundary))
        if place is None and not envelopes:
            raise _missing("evidence of that boundary")
        leaves: tuple[bytes, ...] = ()
        if place is not None:
            dtype, dim = self._shape(place)
            async with self._heavy:
                leaves = await asyncio.to_thread(_leaves, place, dtype, dim, await self._rows(place))
        return web.json_response(BoundaryEvidence(leaves, envelopes).to_json())

    async def receipt(self, request: web.Request) -> web.Response:
        """Our commitment of a job."""
        signed = await self._services.store.receipt(_h32(request.match_info["job_id"], "job_id"))
        if signed is None:
            raise _missing("receipt of that job")
        return web.json_response(signed.to_json())

    async def previous(self, request: web.Request) -> web.Response:
        """The commitment of the hop before that ours names: proof against it where it signed another one as well."""
        kept = await self._services.store.previous(_h32(request.match_info["job_id"], "job_id"))
        if kept is None:
            raise _missing("commitment of a hop before")
        return web.json_response(kept.signed.to_json())

    async def taps(self, request: web.Request) -> web.Response:
        """Taps of some positions of a committed job with their proofs, once no verifier can attest them any more."""
        job_id = _h32(request.match_info["job_id"], "job_id")
        positions = _positions(request.query.get("positions", ""))
        signed = await self._services.store.receipt(job_id)
        if signed is None or signed.commit.aux_root == ZERO32:
            raise _missing("taps of that job")
        # What is shown too early lets verifiers attest what they did not compute. The time seen last is at most behind;
        # asking the chain here would let anybody keep its server busy in our name.
        if not taps_open(await self._services.store.audited_epoch(job_id), self._services.clock.time):
            raise ProtocolError(
                "taps-closed", "The verifiers of this job have not revealed yet, or it is forgotten.", "Ask later."
            )
        commit = signed.commit
        if positions[-1] >= commit.tokens:
            raise ProtocolError("bad-request", f"The job has {commit.tokens} positions.")
        rows = await self._services.traces.read(job_id, TAPS)
        async with self._heavy:
            opened = await asyncio.to_thread(open_taps, job_id, commit.hop, rows, positions)
        return web.json_response({"count": commit.tokens, "taps": [item.to_json() for item in opened]})

    async def manifest(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._manifest.canonical_json(), content_type="application/json")

    async def file(self, request: web.Request) -> web.StreamResponse:
        """A file of the model that this node has; ranges are honoured."""
        info = self._manifest.file(request.match_info["name"])
        path = self._model_dir / info.name
        if info.name == MANIFEST_NAME or not path.is_file():
            raise ModelError("no-such-file", f"This node does not have {info.name}.", "Ask a node of those layers.")
        return web.FileResponse(path)

    def _shape(self, place: BoundaryPlace) -> tuple[WireDtype, int]:
        if place.boundary == 0:
            return WireDtype.I32, 1
        return WireDtype(place.wire_dtype), self._services.facts.hidden

    async def _rows(self, place: BoundaryPlace) -> bytes:
        return await self._services.traces.read(place.job_id, IN if place.incoming else OUT)


def _leaves(place: BoundaryPlace, dtype: WireDtype, dim: int, rows: bytes) -> tuple[bytes, ...]:
    tree = BoundaryTree(place.job_id, place.boundary, dtype, dim)
    tree.append(rows)
    return tree.leaves


def _batch_json(batch: BatchRecord, leaves: Sequence[LeafRecord]) -> bytes:
    document = {
        "epoch": batch.epoch,
        "seq": batch.seq,
        "root": to_hex(batch.root),
        "count": batch.count,
        "leaves": [_leaf(leaf) for leaf in leaves],
    }
    return json.dumps(document).encode()


def _leaf(leaf: LeafRecord) -> dict[str, Any]:
    job = leaf.job
    out: dict[str, Any] = {
        **leaf.signed.to_json(),
        "salt": to_hex(leaf.salt),
        "job": signed_job_json(leaf.key, job.spec, job.spec_sig),
        "route": [hop.to_json() for hop in job.route],
    }
    if job.prompt is not None:
        out["prompt"] = base64.b64encode(job.prompt).decode()
    if leaf.emitted is not None:
        out["emitted"] = base64.b64encode(leaf.emitted).decode()
    return out

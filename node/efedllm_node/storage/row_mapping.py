"""Rows of the node's tables as records, and records as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import RowMapping

from efedllm.commitments.evidence import EnvelopeRecord
from efedllm.commitments.messages import Envelope, HopCommit, JobSpec, RouteHop, SessionKey, SignedCommit, Voucher
from efedllm_node.storage.records import BatchRecord, BoundaryPlace, OpenedJob, Predecessor, SessionRecord
from efedllm_node.storage.tables import sessions


def session_columns() -> list[Any]:
    """Columns of sessions under names that a join does not confuse."""
    return [column.label(f"s_{column.name}") for column in sessions.c]


def session_of(row: RowMapping, prefix: str = "") -> SessionRecord:
    """A session; `prefix` as `session_columns` puts it."""
    voucher = row[f"{prefix}voucher_json"]
    return SessionRecord(
        session_id=row[f"{prefix}session_id"],
        key=SessionKey.from_json(json.loads(row[f"{prefix}key_json"])),
        hop=row[f"{prefix}hop"],
        price=row[f"{prefix}price"],
        deposit=int(row[f"{prefix}deposit"]),
        settled=int(row[f"{prefix}settled"]),
        status=row[f"{prefix}status"],
        cumulative=int(row[f"{prefix}cumulative"]),
        voucher=None if voucher is None else Voucher.from_json(json.loads(voucher)),
        voucher_sig=row[f"{prefix}voucher_sig"],
        billed=row[f"{prefix}billed"],
    )


def job_of(row: RowMapping) -> OpenedJob:
    """A job."""
    return OpenedJob(
        job_id=row["job_id"],
        session_id=row["session_id"],
        hop=row["hop"],
        hops=row["hops"],
        spec=JobSpec.from_json(json.loads(row["spec_json"])),
        spec_sig=row["spec_sig"],
        route=tuple(RouteHop.from_json(hop) for hop in json.loads(row["route_json"])),
        prompt=row["prompt"],
        in_row=row["in_row"],
    )


def job_row(record: OpenedJob) -> dict[str, Any]:
    """What is kept of a job when it is opened."""
    return {
        "job_id": record.job_id,
        "session_id": record.session_id,
        "hop": record.hop,
        "hops": record.hops,
        "spec_json": json.dumps(record.spec.to_json()),
        "spec_sig": record.spec_sig,
        "route_json": json.dumps([hop.to_json() for hop in record.route]),
        "prompt": record.prompt,
        "in_row": record.in_row,
    }


def signed_of(row: RowMapping) -> SignedCommit:
    """A signed commitment."""
    return SignedCommit(HopCommit.from_json(json.loads(row["commit_json"])), row["commit_sig"])


def predecessor_of(row: RowMapping) -> Predecessor:
    """A commitment of the hop before, with our own hop and route beside it."""
    hops = json.loads(row["route_json"])
    return Predecessor(RouteHop.from_json(hops[row["hop"] - 1]).node, signed_of(row))


def batch_of(row: RowMapping) -> BatchRecord:
    """A batch."""
    return BatchRecord(row["number"], row["seq"], row["epoch"], row["root"], row["count"], row["status"])


def place_of(row: RowMapping, *, incoming: bool) -> BoundaryPlace:
    """Where a job's rows are."""
    boundary = row["hop"] if incoming else row["hop"] + 1
    spec = JobSpec.from_json(json.loads(row["spec_json"]))
    return BoundaryPlace(row["job_id"], boundary, incoming, spec.wire_dtype, row["positions"])


def envelope_of(row: RowMapping) -> EnvelopeRecord:
    """An envelope with its signatures."""
    envelope = Envelope(row["job_id"], row["boundary"], row["from_pos"], row["n"], row["chunk_hash"], row["prev"])
    return EnvelopeRecord(envelope, row["sender_sig"], row["receiver_sig"])


def envelope_rows(evidence: Sequence[EnvelopeRecord]) -> list[dict[str, Any]]:
    """What is kept of envelopes."""
    return [
        {
            "job_id": e.envelope.job_id,
            "boundary": e.envelope.boundary,
            "from_pos": e.envelope.from_pos,
            "n": e.envelope.n,
            "prev": e.envelope.prev,
            "chunk_hash": e.envelope.chunk_hash,
            "sender_sig": e.sender_sig,
            "receiver_sig": e.receiver_sig,
        }
        for e in evidence
    ]

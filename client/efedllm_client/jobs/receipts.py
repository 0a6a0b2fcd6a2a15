"""Receipts on disk: proof of what each node signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efedllm.chain.deployment import write_json
from efedllm.commitments.eip712 import to_hex
from efedllm.commitments.messages import SessionKey, signed_job_json
from efedllm_client.jobs.blame import Finding
from efedllm_client.jobs.job import PaidJobRecord


def receipt_path(home: Path, job_id: bytes) -> Path:
    return home / "receipts" / f"{job_id.hex()}.json"


def receipt_document(record: PaidJobRecord, key: SessionKey, findings: list[Finding]) -> dict[str, Any]:
    """Everything signed about a job, with the ids it is about. `complete`: every hop signed and nothing contradicts."""
    return {
        "job_id": to_hex(record.spec.job_id),
        **signed_job_json(key, record.spec, record.spec_signature),
        "route": [hop.to_json() for hop in record.route],
        "prompt_ids": list(record.prompt),
        "token_ids": list(record.emitted),
        "finish_reason": record.finish_reason,
        "commits": [None if signed is None else signed.to_json() for signed in record.commits],
        "faults": [finding.to_json() for finding in findings],
        "complete": not findings and all(signed is not None for signed in record.commits),
    }


def save_receipt(home: Path, document: dict[str, Any]) -> Path:
    """Write a receipt (mode 0600: it holds the prompt) and return its path."""
    path = receipt_path(home, bytes.fromhex(document["job_id"][2:]))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, document, mode=0o600)
    return path

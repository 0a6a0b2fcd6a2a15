"""What the store gives up in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import NO_EOS, JobSpec, SessionKey
from efedllm_node.storage.records import OpenedJob, SessionRecord
from efedllm_node.storage.store import NodeStore

NODE = "0x" + "aa" * 20
KEY = SessionKey(NODE, NODE, ZERO32, 0, 1, 1, (NODE,), (10_000,))
SESSION = KEY.session_id(1337, NODE)


def a_job(seq: int) -> OpenedJob:
    spec = JobSpec(SESSION, seq, ZERO32, 1, 1, 0, 0, 1_000_000, ZERO32, 1, NO_EOS)
    return OpenedJob(spec.job_id, SESSION, 0, 1, spec, bytes(65), (), b"abcd", 4)


@pytest.mark.parametrize("status", ["aborted", "cancelled"])
async def test_jobs_without_a_commitment_do_not_fill_the_disk(tmp_path: Path, status: str) -> None:
    store = await NodeStore.open(tmp_path / "node.sqlite")
    session = SessionRecord(SESSION, KEY, 0, 1, 10, 0, 1)
    await store.add_session(session)
    # Two connections may open the first jobs of a session at once.
    await store.add_session(session)
    ended, running = a_job(0), a_job(1)
    for job in (ended, running):
        await store.add_job(job)
    await store.end_job(ended.job_id, status, 3, 3)
    assert await store.expired(0, 0) == [ended.job_id]
    await store.forget([ended.job_id])
    assert await store.expired(0, 0) == []
    assert await store.has_job(ended.job_id)
    await store.close()

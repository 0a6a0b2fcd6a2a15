"""Embedding texts: what is refused before anything is paid for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from efedllm.commitments.blame import Fault
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import HopCommit, RouteHop, SignedCommit
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError
from efedllm_client.cli.embed import collect
from efedllm_client.jobs.embedding import Embedding
from efedllm_client.jobs.embedding_job import EmbeddingJob
from efedllm_client.jobs.failover import Place
from efedllm_client.jobs.job import Patience
from efedllm_client.payments.store import Store
from tests.client.toy_node import (
    DOMAIN,
    HIDDEN,
    MODEL_ID,
    NODE,
    NODE_SIGNER,
    STRANGER,
    job_spec,
    paid_session,
    terms,
)


def test_a_text_without_tokens_opens_no_session() -> None:
    # The place is where sessions are opened: it must not be looked at.
    with pytest.raises(ConfigError) as caught:
        Embedding(cast(Place, None), [[1, 2], []])
    assert caught.value.code == "empty-prompt"


def test_the_texts_of_a_command_line(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    assert collect(["three"], lines) == ["one", "two", "three"]
    lines.write_bytes(b"\xff\xfe\x00")
    for unreadable in (lines, tmp_path / "none"):
        with pytest.raises(ConfigError) as caught:
            collect([], unreadable)
        assert caught.value.code == "bad-option"
    with pytest.raises(ConfigError) as caught:
        collect([" "], None)
    assert caught.value.code == "empty-prompt"


async def test_only_a_commitment_that_the_last_hop_signed_speaks_against_it(tmp_path: Path) -> None:
    store = await Store.at(tmp_path / "client.db")
    session = await paid_session(store)
    spec = replace(job_spec(session, [5, 6, 7], 1), max_new_tokens=0)
    route = [RouteHop(NODE, NODE_SIGNER.address, "http://node", 0, 2)]
    job = EmbeddingJob(session, spec, [5, 6, 7], route, DOMAIN, terms(session, [5, 6, 7], 0), Patience(), HIDDEN)
    rows = encode(np.ones((3, HIDDEN), np.float32), WireDtype.F32)
    job._out.append(rows)
    right = HopCommit(
        job_id=spec.job_id,
        spec_hash=spec.digest(DOMAIN),
        hop=0,
        lo=0,
        hi=2,
        profile=0,
        wire_dtype=int(WireDtype.F32),
        tokens=3,
        model_id=MODEL_ID,
        shard_root=ZERO32,
        in_root=ZERO32,
        out_root=job._out.root(),
        tokens_hash=ZERO32,
        aux_root=ZERO32,
        prev_commit=ZERO32,
        epoch=1,
    )
    other = replace(right, out_root=keccak(b"other states"))

    def fault(commit: HopCommit, signer: Signer) -> Fault | None:
        job.record.commits = [SignedCommit(commit, signer.sign(commit.digest(DOMAIN)))]
        return job.output_fault()

    lied = fault(other, NODE_SIGNER)
    assert lied is not None
    assert (lied.kind, lied.guilty) == ("output-mismatch", frozenset({0}))
    assert fault(other, STRANGER) is None
    assert fault(right, NODE_SIGNER) is None
    await store.close()

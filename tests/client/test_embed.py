"""Embedding texts: what is refused before anything is paid, and how the last hop's commitment is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from efedllm.errors import ConfigError
from efedllm_client.cli.embed import collect
from efedllm_client.jobs.blame import find_faults
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.embedding import Embedding
from efedllm_client.jobs.embedding_job import EmbeddingJob
from efedllm_client.payments.store import ClientStore
from tests.client.toy_node import (
    DOMAIN,
    HIDDEN,
    MODEL_ID,
    STRANGER,
    Behaviour,
    job_order,
    job_spec,
    paid_session,
    running,
    states,
)

TEXT = [5, 6, 7]


def test_a_text_without_tokens_opens_no_session() -> None:
    # Sessions are opened through the context, which is not used before the texts are checked.
    with pytest.raises(ConfigError) as caught:
        Embedding(cast(JobContext, None), [[1, 2], []])
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


async def embedded(home: Path, behaviour: Behaviour) -> EmbeddingJob:
    """A finished job of a node that behaves so."""
    store = await ClientStore.at(home / "client.db")
    session = await paid_session(store)
    spec = replace(job_spec(session, TEXT, 1), max_new_tokens=0)
    async with running(behaviour) as node:
        job = EmbeddingJob(job_order(session, spec, TEXT, node.hop), HIDDEN)
        assert [token async for token in job.run()] == []
        assert [(ack.boundary, ack.from_pos, ack.n) for ack in node.acks] == [(1, 0, 3)]
    await store.close()
    np.testing.assert_array_equal(job.states, states(3))
    return job


async def test_a_hop_that_commits_to_the_states_it_sent_has_no_fault(tmp_path: Path) -> None:
    job = await embedded(tmp_path, Behaviour())
    assert job.output_fault() is None
    assert await find_faults(job.record, DOMAIN, MODEL_ID) == []


async def test_a_hop_that_commits_to_other_states_than_it_sent_is_guilty(tmp_path: Path) -> None:
    fault = (await embedded(tmp_path, Behaviour(commit_other_states=True))).output_fault()
    assert fault is not None
    assert (fault.kind, fault.guilty) == ("output-mismatch", frozenset({0}))


async def test_a_commitment_that_the_last_hop_did_not_sign_is_no_proof_against_it(tmp_path: Path) -> None:
    job = await embedded(tmp_path, Behaviour(commit_other_states=True, commit_signer=STRANGER))
    assert job.output_fault() is None

"""An encoder's text is computed whole or not at all, also when the hop before stops in the middle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.leaves import act_leaf, chunk_hash
from efedllm.wire.messages import ActMsg, CancelMsg, CommitMsg, ErrorMsg, FinishMsg
from tests.live_network import LiveNetwork
from tests.node.node_kit import Lab, change_sent, eventually, open_lab
from tests.node.raw_client import RawClient

TEXT = [7, 3, 90, 11, 42]


@pytest_asyncio.fixture
async def encoders(unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Lab]:
    """Two nodes that share the layers of an encoder."""
    async with open_lab(unhurried, published("bert"), tmp_path) as lab:
        await lab.start_route()
        yield lab


def stop_after(lab: Lab, rows: int) -> None:
    """From now on hop 0 sends only the first `rows` rows of a text, signed, and then that the job is cancelled."""
    services = lab.apps[0].dispatcher.services

    def cut(message: Any) -> list[Any]:
        if not isinstance(message, ActMsg):
            return [message]
        width = message.dim * 4
        payload = message.payload[: rows * width]
        part = replace(message, n=rows, payload=payload)
        leaves = [
            act_leaf(part.job_id, 1, i, WireDtype.F32, part.dim, payload[i * width : (i + 1) * width])
            for i in range(rows)
        ]
        digest = part.envelope(chunk_hash(leaves)).digest(services.domain)
        return [replace(part, signature=services.signer.sign(digest)), CancelMsg(part.job_id, "cancelled")]

    change_sent(lab.apps[0], cut)


async def embed(client: RawClient) -> list[Any]:
    """Everything the nodes say until the job has failed or both have committed."""
    spec = client.spec(TEXT, 0)
    await client.open_job(spec, TEXT, len(TEXT) + 1)
    await client.start(spec)
    said: list[Any] = []
    while not any(isinstance(message, ErrorMsg) for message in said):
        _, message = await client.receive()
        said.append(message)
        if sum(isinstance(item, CommitMsg) for item in said) == 2:
            break
    return said


@pytest.mark.parametrize("rows", [1, 4])
async def test_a_text_cancelled_in_the_middle_leaves_no_commitment(encoders: Lab, rows: int) -> None:
    async with await encoders.client() as client:
        whole = await embed(client)
        assert [m.reason for m in whole if isinstance(m, FinishMsg)] == ["length"]
        assert [m.commit.tokens for m in whole if isinstance(m, CommitMsg)] == [len(TEXT)] * 2
    stop_after(encoders, rows)
    async with await encoders.client() as client:
        said = await embed(client)
    error = next(message for message in said if isinstance(message, ErrorMsg))
    assert error.code == "partial-text"

    async def given_up() -> bool:
        return [await app.store.counts() for app in encoders.apps] == [{"done": 1, "aborted": 1}] * 2

    await eventually(given_up, "both nodes give up")

"""An honest node never signs two commitments for one job, whatever happens to it, its records or its clients."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efedllm.commitments.messages import JobSpec
from efedllm.errors import ProtocolError
from efedllm.wire.messages import ErrorMsg, OpenedMsg
from efedllm_node.app import DATABASE, NodeApp
from efedllm_node.home import SIGNER_FILE
from efedllm_node.jobs.admission import check_own
from efedllm_node.storage.records import OriginRecord
from efedllm_node.storage.store import NodeStore
from efedllm_node.storage.store_origin import Found, doubt, origin
from tests.node.node_kit import Lab
from tests.node.raw_client import RawClient, job_error
from tests.node.test_generation import PROMPT

KNOWN = OriginRecord(100, "7")
FOUND = Found(KNOWN, "7", 3, 3, 900)


@pytest.mark.parametrize(
    ("found", "why", "block"),
    [
        (FOUND, "", 100),
        (replace(FOUND, store_seq=4), "", 100),
        (replace(FOUND, known=None), "new", 900),
        (replace(FOUND, file="8"), "copy", 900),
        (replace(FOUND, chain_seq=4), "batch 3", 900),
    ],
)
def test_a_store_is_believed_from_its_origin_on(found: Found, why: str, block: int) -> None:
    assert why in doubt(found)
    assert (doubt(found) == "") == (why == "")
    assert origin(found) == OriginRecord(block, found.file)


async def one_job(lab: Lab, app: NodeApp) -> tuple[RawClient, JobSpec]:
    """A client whose first job the node has committed to."""
    client = await lab.client()
    async with client:
        spec, outcome = await client.generate(PROMPT, 3, 20)
    signed = await app.store.receipt(spec.job_id)
    assert signed is not None
    assert signed == outcome.commits[0]
    return client, spec


async def asked_again(lab: Lab, client: RawClient, spec: JobSpec) -> str:
    """The code with which the nodes refuse the same job number with another spec."""
    again = RawClient(lab.chain, client.session, await lab.infos())
    other = replace(spec, seed=b"\x07" * 32)
    assert other.job_id == spec.job_id
    async with again:
        return (await again.expect_error(0, again.open_msg(other, PROMPT, 0, again.voucher(40)))).code


async def test_a_number_is_used_once_also_by_the_next_process(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    client, spec = await one_job(lab, app)
    assert await asked_again(lab, client, spec) == "job-exists"
    await lab.stop(app)
    again = await lab.launch(app.config)
    assert await asked_again(lab, client, spec) == "job-exists"
    # The session itself goes on.
    other = RawClient(lab.chain, client.session, await lab.infos([again]))
    other.next_seq = 1
    async with other:
        _, outcome = await other.generate(PROMPT, 3, 40)
    assert len(outcome.tokens) == 3


async def test_a_number_asked_for_twice_at_once_is_opened_once(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    first, second = await lab.client(), None
    async with first:
        second = RawClient(lab.chain, first.session, await lab.infos())
        async with second:
            spec = first.spec(PROMPT, 3)
            other = replace(spec, seed=b"\x07" * 32)
            await asyncio.gather(
                first.send(0, first.open_msg(spec, PROMPT, 0, first.voucher(20))),
                second.send(0, second.open_msg(other, PROMPT, 0, second.voucher(20))),
            )
            answers = [(await client.receive())[1] for client in (first, second)]
    assert sum(isinstance(answer, OpenedMsg) for answer in answers) == 1
    (refused,) = [answer for answer in answers if isinstance(answer, ErrorMsg)]
    assert refused.code == "job-exists"
    await lab.idle()
    assert sum((await app.store.counts()).values()) == 1


def _lose(home: Path, _kept: Path) -> None:
    for path in home.glob(f"{DATABASE}*"):
        path.unlink()


def _put_back(home: Path, kept: Path) -> None:
    """As a backup from before the job is put back: other files."""
    _lose(home, kept)
    for path in kept.glob(f"{DATABASE}*"):
        shutil.copy(path, home)


def _roll_back(home: Path, kept: Path) -> None:
    """As a snapshot of the disk is taken back: the same file, with what it held before the job."""
    with sqlite3.connect(kept / DATABASE) as before, sqlite3.connect(home / DATABASE) as now:
        before.backup(now)


@pytest.mark.parametrize("fault", [_lose, _put_back, _roll_back])
async def test_records_lost_or_set_back_cost_the_sessions_and_no_stake(
    lab: Lab, fault: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    app = await lab.start(1, (0, 8))
    await lab.stop(app)
    kept = tmp_path / "backup"
    shutil.copytree(app.config.home, kept)
    app = await lab.launch(app.config)
    await lab.begin_epoch()
    client, spec = await one_job(lab, app)
    # What is on chain of the job tells a disk that was set back.
    await lab.post_batches()
    await lab.stop(app)
    fault(app.config.home, kept)
    again = await lab.launch(app.config)
    assert await again.store.receipt(spec.job_id) is None, "the fault made the node forget the job"
    await lab.begin_epoch()
    assert await asked_again(lab, client, spec) == "session-too-old"
    assert await again.store.counts() == {}
    # New sessions are served at once, and also after another restart.
    for _ in range(2):
        async with await lab.client() as newer:
            await newer.generate(PROMPT, 3, 20)
        await lab.stop(again)
        again = await lab.launch(again.config)
    assert await asked_again(lab, client, spec) == "session-too-old"


async def test_what_was_signed_is_on_disk_before_it_leaves(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between signing and storing: nobody has seen the signature, and no second one is ever made."""
    app = await lab.start(1, (0, 8))
    seen: list[bytes] = []

    async def crash(_store: NodeStore, job_id: bytes, _done: Any) -> bool:
        seen.append(job_id)
        raise OSError("disk gone")

    with monkeypatch.context() as patched:
        patched.setattr(NodeStore, "finish_job", crash)
        client = await lab.client()
        async with client:
            spec = client.spec(PROMPT, 3)
            await client.open_job(spec, PROMPT, 20)
            await client.start(spec)
            with pytest.raises(ProtocolError) as caught:
                await client.collect(spec)
    assert (caught.value.code, seen) == ("internal", [spec.job_id])
    await lab.idle()
    assert await app.store.receipt(spec.job_id) is None
    assert await asked_again(lab, client, spec) == "job-exists"
    await lab.stop(app)
    await lab.launch(app.config)
    assert await asked_again(lab, client, spec) == "job-exists"


async def test_a_job_ends_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails after the commitment is kept changes nothing about it; what ended without one gets none."""
    app = await lab.start(1, (0, 8))
    real = NodeStore.finish_job

    async def kept_then_broken(store: NodeStore, job_id: bytes, done: Any) -> bool:
        assert await real(store, job_id, done)
        # The same again: a job that ended takes no second commitment.
        assert not await real(store, job_id, replace(done, salt=bytes(32)))
        raise OSError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(NodeStore, "finish_job", kept_then_broken)
        async with await lab.client() as client:
            spec = client.spec(PROMPT, 3)
            await client.open_job(spec, PROMPT, 20)
            await client.start(spec)
            await job_error(client)
    await lab.idle()
    assert await app.store.counts() == {"done": 1}
    (leaf,) = await app.store.pending_leaves()
    signed = await app.store.receipt(spec.job_id)
    assert signed is not None
    assert leaf.digest == signed.commit.digest(lab.chain.efl_domain)
    assert leaf.salt != bytes(32)


async def test_a_process_whose_place_another_took_signs_nothing(lab: Lab) -> None:
    """A second process with the account, in a home of its own: the registry's word decides which of them serves."""
    first = await lab.start(1, (0, 8))
    session = await lab.session()
    old = await lab.infos()
    home = lab.directory / "another"
    home.mkdir()
    shutil.copy(first.config.home / SIGNER_FILE, home)
    second = await lab.launch(replace(first.config, home=home))
    await lab.begin_epoch()
    for app in lab.apps:
        app.dispatcher.services.sessions.forget_nodes()
    assert (await lab.chain.node(first.address)).endpoint == second.endpoint
    client = RawClient(lab.chain, session, old)
    async with client:
        message = client.open_msg(client.spec(PROMPT, 3), PROMPT, 0, client.voucher(20))
        assert (await client.expect_error(0, message)).code == "replaced"
    assert await first.store.counts() == {}
    await lab.stop(first)
    async with await lab.client() as other:
        await other.generate(PROMPT, 3, 20)


async def test_another_key_or_endpoint_in_the_registry(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    own = await lab.chain.node(app.address)
    check_own(own, own.signer, own.endpoint)
    for signer, endpoint in ((app.address, own.endpoint), (own.signer, "http://127.0.0.1:1")):
        with pytest.raises(ProtocolError, match="another key or endpoint") as caught:
            check_own(own, signer, endpoint)
        assert caught.value.code == "replaced"

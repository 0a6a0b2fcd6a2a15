"""Canaries of real nodes: wrong for the auditor that computes, like any other job for everybody else."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from efedllm import logs
from efedllm.commitments.canary import canary_place, fault_digest, shown_fault
from efedllm.commitments.leaves import hop_leaf
from efedllm.wire.messages import CancelMsg
from efedllm_node.app import NodeApp
from efedllm_node.canaries.store import CanaryStore
from efedllm_verifier.audit import Auditor
from efedllm_verifier.fetch import FetchLimits, NodeReader
from efedllm_verifier.statistic import Outcome
from tests.live_network import LiveNetwork
from tests.node.audit_kit import SEED, AuditedLab, open_auditor
from tests.node.node_kit import Lab, open_lab, settled_copy

PROMPT = [7, 3, 90, 11, 42, 3, 3, 17]
NEW = 5
LIMITS = FetchLimits(memory=0.0)
WARM: dict[str, Any] = {"temperature_milli": 900, "top_k": 30, "top_p_ppm": 950_000, "seed": bytes(range(32))}


@pytest_asyncio.fixture(params=["exact", "float"])
async def audited(
    request: pytest.FixtureRequest, unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[AuditedLab]:
    """Two nodes that take canaries of the client, and an auditor."""
    source = published("llama", quant="int8") if request.param == "exact" else published("llama")
    model = settled_copy(source, tmp_path / "model", request.param)
    async with open_lab(unhurried, model, tmp_path) as lab, open_auditor(lab, LIMITS) as made:
        await lab.start_route(canary_clients=(lab.chain.account_address,))
        await lab.begin_epoch()
        yield made


async def fetched(app: NodeApp, path: str) -> bytes:
    def get() -> bytes:
        with urllib.request.urlopen(app.endpoint + path, timeout=20) as answer:
            return bytes(answer.read())

    return await asyncio.to_thread(get)


def shape(value: object) -> object:
    """A document without what any two jobs differ in: numbers, hashes, ids; their sizes and keys stay."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return len(value) if isinstance(value, str) else type(value).__name__


def names(metrics: bytes) -> list[str]:
    return [re.split(r"[ ]", line)[0] for line in metrics.decode().splitlines() if not line.startswith("#")]


async def test_a_canary_fails_where_it_is_recomputed_and_shows_nowhere(audited: AuditedLab) -> None:
    lab = audited.lab
    metrics, infos = [], []
    # Another test may have left a level that hides what is looked for.
    logs.setup()
    with capture_logs() as lines:
        async with await lab.client() as client:
            jobs, paid = {}, 0
            # None: an ordinary job; else the hop that is asked for a wrong answer.
            for number, canary in enumerate((None, 0, 1, None)):
                paid += len(PROMPT) + NEW
                spec, outcome = await client.generate(PROMPT, NEW, paid, canary, **WARM)
                assert len(outcome.tokens) == NEW
                jobs[spec.job_id] = canary
                if number in (0, 2):
                    metrics.append([names(await fetched(app, "/metrics")) for app in lab.apps])
                    infos.append([shape(json.loads(await fetched(app, "/v1/info"))) for app in lab.apps])
        epoch = await lab.post_batches()
    assert metrics[0] == metrics[1]
    assert infos[0] == infos[1]
    assert {"job done", "batch posted"} <= {entry["event"] for entry in lines}
    assert not [entry for entry in lines if "canar" in json.dumps(entry, default=str).lower()]

    for hop, app in enumerate(lab.apps):
        result = await audited.audit(epoch, app)
        outcomes = {leaf.job_id: leaf for leaf in result.leaves}
        assert {job: report.outcome for job, report in outcomes.items()} == {
            job: Outcome.SEVERE if canary == hop else Outcome.PASS for job, canary in jobs.items()
        }
        failed = [report.leaf for job, report in outcomes.items() if jobs[job] == hop]
        assert result.verdict.tap == fault_digest(SEED, failed)
        body = await fetched(app, "/v1/batches/0")
        assert b"canary" not in body
        seen = {bytes.fromhex(leaf["commit"]["job_id"][2:]): leaf for leaf in json.loads(body)["leaves"]}
        assert len({json.dumps(shape(leaf)) for leaf in seen.values()}) == 1
        for path in ("receipt", f"evidence?boundary={hop}"):
            documents = [json.loads(await fetched(app, f"/v1/jobs/0x{job.hex()}/{path}")) for job in seen]
            assert len({json.dumps(shape(document)) for document in documents}) == 1
        # What is served hashes to what is on chain, salt of the canary included.
        (batch,) = await lab.batches(epoch, app)
        (found, records) = await app.store.posted(batch.seq) or (None, [])
        assert found is not None
        assert {hop_leaf(r.signed.commit.digest(app.chain.efl_domain), r.salt) for r in records} == {
            report.leaf for report in outcomes.values()
        }


class Misled(NodeReader):
    """Is shown other emitted tokens than everybody else."""

    async def batch(self, endpoint: str, seq: int, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def changed(value: dict[str, Any]) -> bool:
            leaves = [{**leaf, "emitted": [*range(len(leaf["emitted"]))]} for leaf in value["leaves"]]
            return accept({**value, "leaves": leaves})

        return await super().batch(endpoint, seq, changed)


@pytest.mark.parametrize("audited", ["exact"], indirect=True)
async def test_an_opening_does_not_explain_what_a_node_shows_to_one_verifier(
    audited: AuditedLab, tmp_path: Path, unhurried: LiveNetwork
) -> None:
    lab = audited.lab
    async with await lab.client() as client:
        await client.generate(PROMPT, NEW, len(PROMPT) + NEW, None, **WARM)
    epoch, app = await lab.post_batches(), lab.apps[1]
    shown = await audited.audit(epoch, app)
    assert [report.outcome for report in shown.leaves] == [Outcome.PASS]
    async with Misled(LIMITS) as reader:
        misled = Auditor(lab.chain, reader, audited.house, tmp_path / "misled", unhurried.account(8).address)
        result = await misled.audit(await audited.task(epoch, app))
    (report,) = result.leaves
    assert (report.code, report.outcome) == ("tokens-hash", Outcome.SEVERE)
    assert result.verdict.tap == fault_digest(SEED, [shown_fault(report.leaf)]) != fault_digest(SEED, [report.leaf])


@pytest.mark.parametrize("audited", ["exact"], indirect=True)
async def test_a_cancelled_canary_ends_like_any_job(audited: AuditedLab) -> None:
    lab = audited.lab
    async with await lab.client() as client:
        spec = client.spec(PROMPT, 40)
        await client.open_job(spec, PROMPT, len(PROMPT) + 40, 1)
        await client.start(spec)

        async def enough(count: int) -> None:
            if count == 3:
                await client.send(0, CancelMsg(spec.job_id, "enough"))

        outcome = await client.collect(spec, on_token=enough)
    assert outcome.finish is not None
    assert outcome.finish.reason == "cancelled"
    assert None not in outcome.commits
    epoch = await lab.post_batches()
    reports = [(await audited.audit(epoch, app)).leaves for app in lab.apps]
    (posted,) = await CanaryStore(lab.apps[1].store.engine).posted(epoch)
    place = canary_place(posted.canary.consent, posted.canary.nonce, len(PROMPT) + 39)
    # The node draws its nonce: the end may come before the place, and then the job was computed as it should be.
    wrong = Outcome.SEVERE if place.position < posted.commit.tokens else Outcome.PASS
    assert [[report.outcome for report in leaves] for leaves in reports] == [[Outcome.PASS], [wrong]]


async def test_strangers_get_no_canary_and_nothing_of_them_is_kept(pair: Lab) -> None:
    async with await pair.client() as client:
        spec = client.spec(PROMPT, NEW)
        asking = client.open_msg(spec, PROMPT, 1, client.voucher(100), canary=client.consent(spec, 1))
        answer = await client.expect_error(1, asking)
    assert (answer.code, answer.job_id) == ("canary-refused", spec.job_id)
    assert not await pair.apps[1].store.has_job(spec.job_id)

"""A client that signs two specs of one job and a node that shows its auditors either (15)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from efedllm.commitments.eip712 import to_hex
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import NO_EOS
from efedllm_bench.attacks.lab import RANGES, Lab
from efedllm_bench.attacks.lies.specs import shown
from efedllm_bench.cheats.http import Door, Lie
from efedllm_verifier.audit import attested_digest
from efedllm_verifier.statistic import Outcome
from tests.attacks.node_network import LIMITS, NodeNetwork, node_network
from tests.attacks.test_real_nodes import PROMPT
from tests.live_network import LiveNetwork
from tests.node.audit_kit import AuditedLab, open_auditor

CHANGES: tuple[dict[str, Any], ...] = (
    {"seed": keccak(b"another seed")},
    {"temperature_milli": 1},
    {"top_k": 7},
    {"top_p_ppm": 1},
    {"max_new_tokens": 4000},
    {"eos_token": 5},
    {"prompt_tokens": 39},
    {"prompt_hash": keccak(b"another prompt")},
    {"wire_dtype": 2},
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_whatever_the_other_spec_says_it_is_not_the_committed_one(float_lab: Lab, hop: int, change: Any) -> None:
    job = float_lab.jobs[1]
    assert job.spec.eos_token == NO_EOS
    assert shown(float_lab, job, hop, job.spec, replace(job.spec, **change)) == "wrong-spec"


def test_the_committed_spec_is_no_fault(lab: Lab) -> None:
    job = lab.jobs[1]
    assert [shown(lab, job, hop, job.spec, job.spec) for hop in range(len(RANGES))] == ["", "", ""]


@pytest_asyncio.fixture
async def network(unhurried: LiveNetwork, lab: Lab, tmp_path: Path) -> AsyncIterator[NodeNetwork]:
    async with node_network(unhurried, lab, tmp_path) as made:
        yield made


async def test_a_node_that_shows_two_verifiers_two_jobs(network: NodeNetwork) -> None:
    """The tokens are right by one spec and wrong by the other: which one counts is fixed before anybody is drawn."""
    last, domain = network.apps[1], network.lab.chain.efl_domain
    async with await network.lab.client() as client:
        sampled = {"temperature_milli": 900, "top_k": 50, "top_p_ppm": 950_000}
        spec, outcome = await client.generate(PROMPT, 8, len(PROMPT) + 8, seed=keccak(b"seed"), **sampled)
        other = replace(spec, seed=keccak(b"other seed"))
        assert other.job_id == spec.job_id
        papers = {
            "job_spec": other.to_json(),
            "spec_signature": to_hex(client.session.signer.sign(other.digest(domain))),
        }
    (first, second) = outcome.commits
    assert first is not None
    assert second is not None
    assert first.commit.spec_hash == second.commit.spec_hash == spec.digest(domain)
    async with Door(last.endpoint, job=papers) as door, open_auditor(network.lab, LIMITS, 8) as another:
        await last.chain.contracts.node_registry.set_endpoint(door.url)
        epoch = await network.post()

        async def verdict(auditor: AuditedLab) -> tuple[str, Outcome, bytes]:
            audit = await auditor.audit(epoch, last)
            (leaf,) = audit.leaves
            assert attested_digest(audit.leaves) == audit.verdict.tap
            return leaf.code, leaf.outcome, audit.verdict.tap

        # Whoever is shown the other spec finds it.
        other_job: Lie = "other_job"
        for shows in ((None, other_job), (other_job, None)):
            for auditor, lie in zip((network.audited, another), shows, strict=True):
                door.lie = lie
                code, judged, digest = await verdict(auditor)
                if lie is None:
                    assert (code, judged) == ("", Outcome.PASS)
                    continue
                assert (code, judged) == ("wrong-spec", Outcome.FAIL)
                assert digest == ZERO32
    # The neighbour, with the same client, showed what it committed to.
    (report,) = (await network.audit(epoch, network.apps[0])).values()
    assert report.outcome is Outcome.PASS

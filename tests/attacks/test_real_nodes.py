"""Every strategy inside a real node: real jobs over sockets, batches on a real chain, audited over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest_asyncio

from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm_bench.attacks.lab import Lab
from efedllm_bench.cheats.catalog import ATTACKS, ExpectedVerdict, applies
from efedllm_bench.cheats.http import Door, Lie
from efedllm_verifier.statistic import Outcome
from tests.attacks.node_network import NodeNetwork, armed, node_network
from tests.attacks.test_strategies import agrees
from tests.live_network import LiveNetwork

# Long enough that a window of 32 positions hides something.
PROMPT = [(17 * i * i + 5 * i + 3) % 4096 for i in range(48)]
NEW = 14


@pytest_asyncio.fixture
async def network(unhurried: LiveNetwork, lab: Lab, tmp_path: Path) -> AsyncIterator[NodeNetwork]:
    async with node_network(unhurried, lab, tmp_path) as made:
        yield made


async def test_every_strategy_of_a_node_is_judged_as_expected(network: NodeNetwork, lab: Lab) -> None:
    jobs: dict[str, tuple[int, bytes]] = {}
    stale = np.zeros((8, lab.hidden), np.float32)
    async with await network.lab.client() as client:
        for hop, switch in enumerate(network.switches):
            jobs[f"honest-{hop}"] = hop, await network.job(client, PROMPT, NEW, warm=False)
            for item in ATTACKS:
                # A hop that reads ids has strategies of its own; the others are tried where tokens are drawn too.
                if not applies(item, lab.profile, hop, 2) or (hop == 0 and item.where != "first"):
                    continue
                switch.chosen = armed(item, lab, switch.inner, stale)
                jobs[item.name] = hop, await network.job(client, PROMPT, NEW, warm=item.sampled)
                switch.chosen = switch.inner
    epoch = await network.post()
    reports = [await network.audit(epoch, app) for app in network.apps]
    expected = {item.name: item.expected(lab.profile) for item in ATTACKS}
    assert len(reports[1]) == len(jobs)
    for name, (hop, job_id) in jobs.items():
        outcome = reports[hop][job_id].outcome
        assert agrees(outcome, expected.get(name, ExpectedVerdict.BELOW)), (name, reports[hop][job_id])
        # The other node computed what it was sent, and is not accused for it.
        assert reports[1 - hop][job_id].outcome is Outcome.PASS, (name, reports[1 - hop][job_id])


async def test_a_leaf_that_stands_twice_in_an_epoch_fails_once(
    unhurried: LiveNetwork, float_lab: Lab, tmp_path: Path
) -> None:
    """Batch padding: the node posts a second batch that holds the first one's leaf again."""
    async with node_network(unhurried, float_lab, tmp_path) as network:
        last = network.apps[1]
        async with await network.lab.client() as client:
            await network.job(client, PROMPT, 4, warm=False)
        epoch = await network.post()
        found = await last.store.posted(0)
        assert found is not None
        leaves = [hop_leaf(leaf.signed.commit.digest(last.chain.efl_domain), leaf.salt) for leaf in found[1]]
        root = batch_root(last.address, epoch, 1, leaves)
        await last.chain.contracts.commitment_log.post(epoch, 1, root, 1)
        async with Door(last.endpoint, repeats={"/v1/batches/1": "/v1/batches/0"}) as door:
            await last.chain.contracts.node_registry.set_endpoint(door.url)
            reports = await network.audit_all(epoch, last)
    assert [(report.seq, report.code, report.outcome) for report in reports] == [
        (0, "", Outcome.PASS),
        (1, "duplicate-leaf", Outcome.FAIL),
    ]


LIES: tuple[tuple[Lie, str], ...] = (
    ("withhold_batch", "batch-withheld"),
    ("withhold_rows", "withheld"),
    ("withhold_evidence", "withheld"),
    ("other_rows", "withheld"),
    ("slow_loris", "withheld"),
)


async def test_what_a_node_does_not_show_fails_without_slashing(
    unhurried: LiveNetwork, float_lab: Lab, tmp_path: Path
) -> None:
    async with node_network(unhurried, float_lab, tmp_path) as network:
        last = network.apps[1]
        async with await network.lab.client() as client:
            await network.job(client, PROMPT, 4, warm=False)
        async with Door(last.endpoint) as door:
            await last.chain.contracts.node_registry.set_endpoint(door.url)
            epoch = await network.post()
            (seen,) = (await network.audit(epoch, last)).values()
            assert (seen.code, seen.outcome) == ("", Outcome.PASS)
            for lie, code in LIES:
                door.lie = lie
                (report,) = (await network.audit(epoch, last)).values()
                assert (report.code, report.outcome) == (code, Outcome.FAIL), lie
            # Its neighbour is not hurt: it has both of its boundaries itself.
            (other,) = (await network.audit(epoch, network.apps[0])).values()
            assert other.outcome is Outcome.PASS

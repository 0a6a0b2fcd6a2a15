"""A node of an exact model: it commits to its taps, keeps them to itself, and opens them once verifiers revealed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

from efedllm.chain import ChainTime
from efedllm.commitments.canonical import WireDtype, decode
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.taps import TapOpening, TapTree, tap_positions
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.taps import TAP_BYTES
from efedllm_node.app import NodeApp
from efedllm_node.compute.trace_files import IN, TAPS
from efedllm_node.http.tap_release import taps_open
from tests.live_network import LiveNetwork
from tests.node.node_kit import PAIR, Lab, open_lab, settled_copy
from tests.node.test_generation import PROMPT


def at(epoch: int, phase: int) -> ChainTime:
    return ChainTime(1, 1, epoch, phase, 0, 90)


@pytest.mark.parametrize(
    ("audited", "epoch", "phase", "opened"),
    [
        (None, 99, 2, False),
        (5, 5, 0, False),
        (5, 5, 2, False),
        (5, 6, 0, False),
        (5, 6, 1, True),
        (5, 6, 2, True),
        (5, 7, 0, True),
        (5, 60, 0, True),
    ],
)
def test_taps_open_when_nobody_can_commit_any_more(audited: int | None, epoch: int, phase: int, opened: bool) -> None:
    assert taps_open(audited, at(epoch, phase)) is opened


@pytest_asyncio.fixture
async def exact_lab(unhurried: LiveNetwork, published: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Lab]:
    """Two nodes of an exact model on a chain."""
    model = settled_copy(published("llama", quant="int8"), tmp_path / "exact")
    async with open_lab(unhurried, model, tmp_path) as lab:
        await lab.start_route()
        yield lab


async def get(app: NodeApp, job: bytes, positions: str) -> tuple[int, dict[str, Any]]:
    url = f"{app.endpoint}/v1/jobs/{job.hex()}/taps?positions={positions}"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.json()


async def recomputed(lab: Lab, app: NodeApp, job: bytes, hop: int) -> bytes:
    """What an auditor gets from the committed input in one pass."""
    lo, hi = PAIR[hop]
    engine = ExactShardEngine.load(lab.model_dir, lo, hi)
    rows = await app.dispatcher.services.traces.read(job, IN)
    given = decode(rows, WireDtype.I32 if hop == 0 else WireDtype.F32, 1 if hop == 0 else engine.hidden)
    item = StepItem(engine.new_sequence(), given[:, 0].astype(np.int32) if hop == 0 else given)
    return engine.step_with_taps([item])[0].taps.tobytes()


async def test_a_job_of_an_exact_model_commits_to_its_taps_and_opens_them_in_time(exact_lab: Lab) -> None:
    lab = exact_lab
    clock = lab.live.clock(lab.chain)
    epoch = await lab.begin_epoch()
    async with await lab.client() as client:
        spec, outcome = await client.generate(PROMPT, 4, 9)
    job = spec.job_id
    for hop, app in enumerate(lab.apps):
        signed = outcome.commits[hop]
        assert signed is not None
        taps = await recomputed(lab, app, job, hop)
        tree = TapTree(job, hop, TAP_BYTES)
        tree.append(taps)
        assert (signed.commit.profile, signed.commit.aux_root) == (1, tree.root())
        assert await app.dispatcher.services.traces.read(job, TAPS) == taps
        assert (await get(app, job, "0"))[1]["error"]["code"] == "taps-closed"

    assert await lab.post_batches() == epoch
    assert {batch.node for batch in await lab.chain.batches(epoch)} == {app.address for app in lab.apps}
    for fraction in (0.02, 0.32):
        await clock.skip_to(epoch + 1, fraction)
        await lab.apps[0].dispatcher.services.clock.refresh()
        assert (await get(lab.apps[0], job, "0"))[1]["error"]["code"] == "taps-closed"

    await clock.skip_to(epoch + 1, 0.36)
    # An answer to a stranger asks nothing of the chain: the node's own clock says when.
    assert (await get(lab.apps[0], job, "0"))[1]["error"]["code"] == "taps-closed"
    await lab.refresh_clocks()
    for hop, app in enumerate(lab.apps):
        signed = outcome.commits[hop]
        assert signed is not None
        count = signed.commit.tokens
        wanted = tap_positions(keccak(b"seed"), keccak(b"leaf"), count)
        status, body = await get(app, job, ",".join(map(str, reversed(wanted))))
        assert (status, body["count"]) == (200, count)
        opened = [TapOpening.from_json(item) for item in body["taps"]]
        assert tuple(item.position for item in opened) == wanted
        assert all(item.proves(signed.commit.aux_root, job, hop, count) for item in opened)
        assert not any(item.proves(signed.commit.aux_root, job, hop + 1, count) for item in opened)

    count = len(PROMPT) + 3
    for positions, status in ((str(count), 400), ("", 400), ("a", 400), ("-1", 400), (",".join(["1"] * 65), 400)):
        assert (await get(lab.apps[0], job, positions))[0] == status
    assert (await get(lab.apps[0], bytes(32), "0"))[0] == 404


async def test_a_float_node_has_no_taps(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    async with await lab.client() as client:
        spec, outcome = await client.generate(PROMPT, 2, 9)
    (signed,) = outcome.commits
    assert signed is not None
    assert signed.commit.aux_root == ZERO32
    assert (await get(app, spec.job_id, "0"))[0] == 404
    assert await app.dispatcher.services.traces.size(spec.job_id, TAPS) == 0

"""Lying, then breaking the job off (30): nobody commits to it, so that no audit can ever see it, and it is paid for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efedllm.chain.amounts import cost_of_tokens
from efedllm.errors import ProtocolError
from efedllm_bench.attacks.lab import Lab
from efedllm_bench.cheats import outputs as ex
from tests.attacks.node_network import node_network
from tests.attacks.test_real_nodes import NEW, PROMPT
from tests.live_network import LiveNetwork

LIES = 5


def least_likely(row: ex.Rows) -> ex.Rows:
    return np.asarray(-row, np.float32)


async def test_a_lie_that_breaks_off_leaves_nothing_to_audit_and_keeps_its_pay(
    unhurried: LiveNetwork, exact_lab: Lab, tmp_path: Path
) -> None:
    async with node_network(unhurried, exact_lab, tmp_path) as network:
        last, switch = network.apps[1], network.switches[1]
        got: list[int] = []

        async def count(tokens: int) -> None:
            got.append(tokens)

        async with await network.lab.client() as client:
            honest = await network.job(client, PROMPT, NEW, warm=False)
            switch.chosen = ex.BreaksOff(switch.inner, least_likely, LIES)
            spec = client.spec(PROMPT, NEW)
            await client.open_job(spec, PROMPT, 2 * (len(PROMPT) + NEW))
            await client.start(spec)
            with pytest.raises(ProtocolError):
                await client.collect(spec, on_token=count)
            switch.chosen = switch.inner
        await network.lab.idle()
        assert got[-1] == LIES
        epoch = await network.post()
        for app in network.apps:
            assert await app.store.counts() == {"done": 1, "aborted": 1}
            assert [report.job_id for report in await network.audit_all(epoch, app)] == [honest]
            assert await app.store.receipt(spec.job_id) is None
        # The lie is billed like any work, and the voucher that covers it was settled on chain.
        (session,) = await last.store.sessions()
        assert session.billed == 2 * len(PROMPT) + NEW + LIES
        paid = (await network.lab.chain.session(spec.session_id)).settled
        assert paid >= cost_of_tokens(session.billed, client.session.price) > 0

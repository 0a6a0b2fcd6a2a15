"""The epoch driver when an epoch does not bring what it should. Against a real Ganache."""

from __future__ import annotations

import pytest

from efedllm.chain import Chain
from efedllm_deploy import epochs
from efedllm_deploy.epochs import EpochDriver, EpochError, EpochWork
from tests.live_network import LiveNetwork


async def test_it_says_what_is_missing_and_does_not_leave_the_epoch(
    deployed: LiveNetwork, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "STEP_SECONDS", 0.6)
    monkeypatch.setattr(epochs, "_NUDGE_AFTER", 0.05)
    said: list[str] = []
    # The last block may be as old as the deployment, and the chain's clock ran on since.
    await deployed.clock(chain).mine()
    driver = EpochDriver(chain, deployed.clock(chain), said.append)
    epoch = await driver.start_next_epoch()
    assert (await chain.now()).epoch == epoch
    with pytest.raises(EpochError) as caught:
        await driver.run(EpochWork(epoch, frozenset({chain.account_address}), {}))
    assert caught.value.code == "epoch-stuck"
    assert f"Epoch {epoch}: batches posted was not seen" in caught.value.message
    # The clock was moved on while waiting, but batches of this epoch could still be posted.
    now = await chain.now()
    assert now.epoch == epoch
    assert epochs.POST_AT < now.fraction < epochs.POST_UNTIL + 0.05
    assert said == []

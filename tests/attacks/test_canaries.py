"""Planted canaries on a real chain (19): who does not look is found, whoever planted is forgiven that and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from efedllm.commitments.canary import fingerprint
from efedllm.errors import EfedError
from efedllm_client.api import Client
from efedllm_node.app import NodeApp
from tests.attacks.canary_network import LAZY, CanaryNetwork, canary_network
from tests.verifier.audit_lab import publish_float32
from tests.verifier.audit_network import VERIFIERS, own_contracts
from tests.verifier.epoch_kit import CrashError
from tests.verifier.test_tap_epochs import revealed_taps

pytestmark = pytest.mark.asyncio(loop_scope="module")

HONEST, DEVIATED = 0, 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(ganache: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CanaryNetwork]:
    """A float model: there are no taps, so that without canaries a pass unseen could never be told."""
    home = tmp_path_factory.mktemp("canaries")
    async with own_contracts(ganache, home) as live, canary_network(live, home, publish_float32(home)) as made:
        yield made


def dies_sending(app: NodeApp, *, before: bool) -> None:
    """The node ends just before, or just after, its opening is mined."""
    send = app.chain.send

    async def dying(contract: str, name: str, *args: object, value: int = 0) -> object:
        if name == "open" and before:
            raise CrashError
        result = await send(contract, name, *args, value=value)
        if name == "open":
            raise CrashError
        return result

    app.chain.send = dying  # type: ignore[method-assign, assignment]


async def test_a_canary_is_forgiven_and_finds_the_verifier_that_did_not_look(net: CanaryNetwork) -> None:
    epoch = await net.begin()
    planted = await net.plant()
    assert (planted.hop, planted.tokens) == (1, 6)
    # What was agreed survives the process, between the job and the batch and at each moment after.
    await net.restart()
    await net.buy()
    await net.post(epoch)
    node, stakes = net.node.address, {index: await net.stake(index) for index in VERIFIERS}
    before = await net.chain.node(node)
    await net.restart()
    await net.commit(epoch)
    await net.node.duties.tick()
    await net.network.clock.skip_to_phase(epoch + 1, 1)
    # Somebody may yet reveal: opened now, it could keep silent.
    await net.node.duties.tick()
    assert not await net.happened("CanaryRegistry", "CanaryOpened", epoch)
    await net.reveal(epoch)
    for dies_before in (True, False):
        dies_sending(net.node, before=dies_before)
        with pytest.raises(CrashError):
            await net.node.duties.tick()
        await net.restart()
    for _ in range(2):
        await net.node.duties.tick()
    (opening,) = await net.happened("CanaryRegistry", "CanaryOpened", epoch)
    assert opening["node"] == node
    await net.judge(epoch)

    tally = await net.chain.call("VerifierCommittee", "tallyOf", epoch, node)
    assert (tally.finalized, tally.quorum, tally.failed, tally.severe, tally.forgiven) == (True, True, 0, False, 2)
    assert len(await net.happened("VerifierCommittee", "CanaryForgiven", epoch)) == 1
    assert not await net.happened("VerifierCommittee", "NodeFailed", epoch)
    after = await net.chain.node(node)
    assert after.stake_active == before.stake_active
    assert (after.standing, after.offences) == (before.standing, 0)
    assert after.trust_ppm >= before.trust_ppm
    # Beside a model without taps nothing else tells who computed: its other verdicts are right.
    assert await net.outcomes(epoch) == {index: DEVIATED if index == LAZY else HONEST for index in VERIFIERS}
    for index in VERIFIERS:
        assert await net.stake(index) == stakes[index] * (98 if index == LAZY else 100) // 100
    # What the node explained is what the verifiers that computed had found, each for itself.
    shown = await revealed_taps(net.network, epoch)
    print_ = await net.chain.call("VerifierCommittee", "canaryOf", epoch, node)
    assert print_ != 0
    (record,) = (await net.status(VERIFIERS[0]))["epochs"]
    assert (record["epoch"], record["canaries"]) == (epoch, [node])
    assert {fingerprint(shown[net.network.chain_address(i)][node]) for i in VERIFIERS if i != LAZY} == {print_}


async def refusal(client: Client, node: str) -> EfedError:
    with pytest.raises(EfedError) as caught:
        await anext(client.plant(node, ["x = "]))
    return caught.value


async def test_who_may_not_plant_is_told_why(net: CanaryNetwork) -> None:
    other, node = net.apps[0].address, net.node.address
    refused = await refusal(net.planter, other)
    assert (refused.code, "--canary-client" in refused.hint) == ("canary-refused", True)
    assert (await refusal(net.client, node)).code == "canary-refused"
    assert (await refusal(net.planter, "0x" + "12" * 20)).code == "unknown-node"


async def test_a_cheat_beside_a_canary_is_punished_in_full(net: CanaryNetwork) -> None:
    epoch = await net.begin()
    await net.plant("for line in ")
    await net.cheat()
    await net.post(epoch)
    node = net.node.address
    before = await net.chain.node(node)
    await net.commit(epoch)
    await net.network.clock.skip_to_phase(epoch + 1, 1)
    await net.reveal(epoch)
    await net.node.duties.tick()
    assert len(await net.happened("CanaryRegistry", "CanaryOpened", epoch)) == 1
    await net.judge(epoch)
    tally = await net.chain.call("VerifierCommittee", "tallyOf", epoch, node)
    assert (tally.severe, tally.forgiven) == (True, 0)
    (failed,) = await net.happened("VerifierCommittee", "NodeFailed", epoch)
    assert (failed["node"], failed["severe"]) == (node, True)
    after = await net.chain.node(node)
    assert after.stake_active == before.stake_active * 8 // 10
    assert after.trust_ppm < before.trust_ppm
    assert (await net.outcomes(epoch))[LAZY] == DEVIATED
    # Out of the network for a while, so nothing can be planted there, nor on a route that needs it.
    assert (await refusal(net.planter, node)).code == "node-excluded"
    assert (await refusal(net.planter, net.apps[0].address)).code == "node-not-on-route"

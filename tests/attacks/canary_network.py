"""Two real nodes, three real verifiers of which one never looks, and an operator's wallet that plants canaries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efedllm.chain import Chain
from efedllm.chain.amounts import WEI
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import SessionKey
from efedllm.commitments.signing import Signer
from efedllm.engine.protocol import Executor
from efedllm.logs import get_logger
from efedllm.models.manifest import Manifest
from efedllm.settings import Settings
from efedllm_bench.attacks.cheats.outputs import Identity
from efedllm_bench.attacks.cheats.wrapper import Switch
from efedllm_client.api import Client
from efedllm_client.jobs.canary import Planted
from efedllm_client.jobs.options import GenerateOptions
from efedllm_node.app import NodeApp
from efedllm_verifier.actions import take_seat
from efedllm_verifier.app import Verifier
from efedllm_verifier.cli import _status_of
from tests.live_network import LiveNetwork
from tests.node.node_kit import Lab
from tests.verifier.audit_network import (
    CLIENT,
    VERIFIERS,
    Network,
    committed,
    drive,
    enter_verifier,
    judged,
    revealed,
)
from tests.verifier.test_tap_epochs import LazyAuditor

LAYERS = ((0, 4), (4, 8))
PLANTER = 3
LAZY = VERIFIERS[2]
GREETING = "def fibonacci(n):\n    "


@dataclass
class CanaryNetwork:
    """The second node answers canaries of the account PLANTER; `switch` chooses what else it does. Account CLIENT buys
    ordinary jobs. The verifier with account LAZY passes whatever it is drawn for.
    """

    network: Network
    lab: Lab
    apps: list[NodeApp]
    switches: list[Switch]
    verifiers: list[Verifier]
    planter: Client
    client: Client

    @property
    def chain(self) -> Chain:
        return self.network.admin

    @property
    def node(self) -> NodeApp:
        """The one that answers canaries."""
        return self.apps[1]

    async def begin(self) -> int:
        """Go to the start of the next epoch; its number."""
        epoch = (await self.chain.now()).epoch + 1
        await self.network.clock.skip_to(epoch, 0.1)
        for app in self.apps:
            await app.desk.shop.clock.refresh()
        return epoch

    async def plant(self, prompt: str = GREETING) -> Planted:
        options = GenerateOptions(max_tokens=6)
        (planted,) = [item async for item in self.planter.plant(self.node.address, [prompt], options)]
        return planted

    async def buy(self, prompt: str = "class Stack:\n    ") -> None:
        """An ordinary job over both nodes."""
        async for _ in self.client.generate(prompt, max_tokens=6, explore=0.0):
            pass
        assert self.client.report is not None
        assert self.client.report.receipts_ok

    async def cheat(self) -> None:
        """A job in which the node that answers canaries skips its layers without anybody's consent."""
        switch = self.switches[-1]
        switch.chosen = Identity(switch.inner)
        await self.buy("import os\n\n")
        switch.chosen = switch.inner

    async def post(self, epoch: int) -> None:
        await self.network.clock.skip_to(epoch, 0.72)
        for app in self.apps:
            await app.duties.tick()
            await app.duties.tick()
        assert {batch.node for batch in await self.chain.batches(epoch)} == {app.address for app in self.apps}

    async def restart(self) -> None:
        """End the node that answers canaries where it is, and start it again."""
        app, port = self.node, int(self.node.endpoint.rsplit(":", 1)[1])
        await self.lab.stop(app)
        self.apps[1] = await self.lab.launch(replace(app.config, listen_port=port), self._wrap)

    def _wrap(self, executor: Executor) -> Executor:
        self.switches.append(Switch(executor))
        return self.switches[-1]

    async def commit(self, epoch: int) -> None:
        await self.network.clock.skip_to_phase(epoch + 1, 0, 0.02)
        await drive(self.network, self.verifiers, lambda: committed(self.network, epoch))

    async def reveal(self, epoch: int) -> None:
        await drive(self.network, self.verifiers, lambda: revealed(self.network, epoch))

    async def judge(self, epoch: int) -> None:
        await self.network.clock.skip_to_phase(epoch + 1, 2)
        await drive(self.network, self.verifiers, lambda: judged(self.network, epoch))

    async def outcomes(self, epoch: int) -> dict[int, int]:
        """Account of a verifier to what it was judged."""
        events = await self.chain.history("VerifierCommittee", "VerifierJudged")
        found = {e.args["verifier"]: e.args["outcome"] for e in events if e.args["epoch"] == epoch}
        return {index: found[self.network.chain_address(index)] for index in VERIFIERS}

    async def happened(self, contract: str, name: str, epoch: int) -> list[dict[str, object]]:
        """Arguments of the events of an epoch."""
        return [event.args for event in await self.chain.history(contract, name) if event.args["epoch"] == epoch]

    async def status(self, index: int) -> dict[str, Any]:
        """What `efedllm verifier status` says of a verifier."""
        config = self.network.config(index)
        return await _status_of(
            self.chain, self.network.live.deployment, self.network.chain_address(index), config.home
        )

    async def stake(self, index: int) -> int:
        view = await self.chain.call("StakeVault", "stakeOf", self.network.chain_address(index))
        return int(view.active)


@asynccontextmanager
async def canary_network(live: LiveNetwork, home: Path, published: Path) -> AsyncIterator[CanaryNetwork]:
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(await live.connect(0))
        lab = await Lab.make(live, admin, published, home)
        for index in VERIFIERS:
            async with await live.connect(index) as chain:
                await admin.send("EfedToken", "transfer", chain.account_address, 200 * WEI)
                await take_seat(chain, None, get_logger("test"))
        stack.push_async_callback(lab.close)
        clients = []
        for index in (PLANTER, CLIENT):
            account = live.account(index)
            await admin.send("EfedToken", "transfer", account.address, 100 * WEI)
            settings = Settings(home=home / f"client{index}", rpc_url=live.rpc_url, deployment=live.path)
            clients.append(await stack.enter_async_context(Client.connect(settings, account=account)))
        network = Network(
            live=live,
            admin=admin,
            clock=live.clock(admin),
            model_id=lab.model_id,
            manifest=Manifest.load(published),
            chains={},
            signers=(),
            client=Signer(keccak(b"none")),
            key=SessionKey(
                admin.account_address, admin.account_address, ZERO32, 0, 0, 0, (admin.account_address,), (10_000,)
            ),
            home=home,
            published=published,
            stack=stack,
        )
        verifiers = []
        for index in VERIFIERS:
            wrapper = LazyAuditor if index == LAZY else None
            verifiers.append(await enter_verifier(stack, network.config(index), wrapper))
        made = CanaryNetwork(network, lab, [], [], verifiers, *clients)
        made.apps.append(await lab.start(1, LAYERS[0]))
        planter = live.account(PLANTER).address
        made.apps.append(await lab.start(2, LAYERS[1], made._wrap, canary_clients=(planter,)))
        yield made

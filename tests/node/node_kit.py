"""Real nodes for tests: real engine, real chain, real sockets, in this process or as processes of their own."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from efedllm.chain import Chain, keystore
from efedllm.chain.amounts import WEI
from efedllm.chain.types import BatchInfo, NodeInfo
from efedllm.commitments.messages import RouteHop
from efedllm_deploy.publish import publish
from efedllm_node.app import NodeApp
from efedllm_node.config import NodeConfig, NodeLimits, Policy
from efedllm_node.jobs.peers import Link
from tests.live_network import LiveNetwork
from tests.node.raw_client import RawClient, Session, open_session

PASSWORD = "correct horse"
PRICE = 3_000_000
LAYERS = 8
# How two nodes share the layers.
PAIR = ((0, 3), (3, 8))

# Duties run when a test says so; waits are short where a test waits for them.
MANUAL = Policy(tick=3600.0)
LIMITS = NodeLimits(client_grace=0.3, payment_timeout=10.0, drain_timeout=10.0, duty_timeout=20.0)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 20.0) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


class Lab:
    """One published model on a chain, and the nodes a test starts for it. Account 0 is deployer and client."""

    def __init__(self, live: LiveNetwork, chain: Chain, model_dir: Path, model_id: bytes, directory: Path) -> None:
        self.live = live
        self.chain = chain
        self.model_dir = model_dir
        self.model_id = model_id
        self.directory = directory
        self.apps: list[NodeApp] = []

    @classmethod
    async def make(cls, live: LiveNetwork, chain: Chain, model_dir: Path, directory: Path) -> Lab:
        published = await publish(chain, model_dir)
        return cls(live, chain, model_dir, published.model_id, directory)

    async def config(self, index: int, layers: tuple[int, int], **changes: Any) -> NodeConfig:
        """A node of dev account `index`, with EFED and a home of its own."""
        account = self.live.account(index)
        home = self.directory / f"node-{index}"
        path = self.directory / f"key-{index}.json"
        if not path.exists():
            keystore.create(path, PASSWORD, light=True, private_key=bytes(account.key))
            await self.chain.contracts.efed_token.transfer(account.address, 1000 * WEI)
        config = NodeConfig(
            rpc_url=self.live.rpc_url,
            deployment=self.live.path,
            keystore=path,
            password=PASSWORD,
            home=home,
            models=(str(self.model_dir),),
            layers=layers,
            model_id=self.model_id,
            price=PRICE,
            stake=200 * WEI,
            light_keys=True,
            limits=LIMITS,
            policy=MANUAL,
        )
        return replace(config, **changes)

    async def start(self, index: int, layers: tuple[int, int], wrapper: Any = None, **changes: Any) -> NodeApp:
        return await self.launch(await self.config(index, layers, **changes), wrapper)

    async def start_route(
        self, layers: Sequence[tuple[int, int]] = PAIR, wrapper: Any = None, **changes: Any
    ) -> list[NodeApp]:
        """One node per range of layers, of accounts 1, 2 and so on."""
        return [await self.start(index, part, wrapper, **changes) for index, part in enumerate(layers, start=1)]

    async def launch(self, config: NodeConfig, wrapper: Any = None) -> NodeApp:
        app = NodeApp(config, wrapper)
        await app.start()
        self.apps.append(app)
        return app

    async def stop(self, app: NodeApp) -> None:
        self.apps.remove(app)
        await app.close()

    async def close(self) -> None:
        for app in self.apps:
            await app.close()

    async def refresh_clocks(self) -> None:
        """Show every node the time of the chain."""
        for app in self.apps:
            await app.dispatcher.services.clock.refresh()

    async def begin_epoch(self) -> int:
        """Go to the start of the next epoch, so that a test has all of it; its number."""
        epoch = (await self.chain.now()).epoch + 1
        await self.live.clock(self.chain).skip_to(epoch, 0.01)
        await self.refresh_clocks()
        return epoch

    async def post_batches(self) -> int:
        """Go to the time of posting, and have every node post its batch and find it on chain; the epoch."""
        epoch = (await self.chain.now()).epoch
        await self.live.clock(self.chain).skip_to(epoch, 0.72)
        for app in self.apps:
            await app.epoch_loop.tick()
            await app.epoch_loop.tick()
        return epoch

    async def idle(self) -> None:
        """Return once no node has a job."""

        async def over() -> bool:
            return all(app.dispatcher.running == 0 for app in self.apps)

        await eventually(over, "every job ends")

    async def batches(self, epoch: int, app: NodeApp) -> tuple[BatchInfo, ...]:
        """What a node posted in an epoch."""
        return tuple(batch for batch in await self.chain.batches(epoch) if batch.node == app.address)

    async def infos(self, apps: Sequence[NodeApp] | None = None) -> list[NodeInfo]:
        """The registrations, in route order."""
        return [await self.chain.node(app.address) for app in (apps or self.apps)]

    async def session(self, **options: Any) -> Session:
        """A session over all running nodes."""
        return await open_session(self.chain, self.model_id, await self.infos(), **options)

    async def client(self, session: Session | None = None) -> RawClient:
        """A client of all running nodes; use it as a context manager."""
        return RawClient(self.chain, session or await self.session(), await self.infos())


def change_sent(app: NodeApp, change: Callable[[Any], Sequence[Any]]) -> None:
    """From now on the node sends to the nodes it reaches what `change` makes of each of its messages."""
    neighbours = app.dispatcher.neighbours
    reach = neighbours.reach
    changed: set[Link] = set()

    async def reaching(hop: RouteHop) -> Link:
        link = await reach(hop)
        if link not in changed:
            changed.add(link)
            send = link.send

            async def sending(message: Any) -> None:
                for part in change(message):
                    await send(part)

            link.send = sending  # type: ignore[method-assign]
        return link

    neighbours.reach = reaching  # type: ignore[method-assign]


async def still_serves(lab: Lab) -> None:
    """A new client gets its tokens."""
    async with await lab.client() as client:
        _, outcome = await client.generate([7, 3, 90, 11, 42], 3, 20)
    assert len(outcome.tokens) == 3


@asynccontextmanager
async def open_lab(live: LiveNetwork, model_dir: Path, directory: Path) -> AsyncIterator[Lab]:
    """A published model on a chain. What is started in it is stopped at the end, what it did on chain is undone.

    `directory`: homes and keystores of its nodes.
    """
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(await live.connect())
        snapshot = await chain.rpc.request("evm_snapshot")
        stack.push_async_callback(chain.rpc.request, "evm_revert", [snapshot])
        # Ganache keeps the time that an earlier test skipped, but shows it only in the next block.
        await live.clock(chain).mine()
        lab = await Lab.make(live, chain, model_dir, directory)
        stack.push_async_callback(lab.close)
        yield lab


def settled_copy(published: Path, directory: Path, profile: Literal["exact", "float"] = "exact") -> Path:
    """`directory`, made a copy of a published model in a profile."""
    # It needs torch, which loads on first use.
    from efedllm.compression.profile import settle_profile

    shutil.copytree(published, directory)
    assert settle_profile(directory, profile).manifest.profile == profile
    return directory

"""Real nodes for tests: real engine, real chain, real sockets, in this process or as processes of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.publish import publish
from efedllm.chain import Chain, keystore
from efedllm.chain.amounts import WEI
from efedllm.chain.types import NodeInfo
from node.app import NodeApp
from node.config import Limits, NodeConfig, Policy
from tests.live_network import LiveNetwork
from tests.node.raw_client import RawClient, Session, open_session

PASSWORD = "correct horse"
PRICE = 3_000_000
LAYERS = 8

# Duties run when a test says so; waits are short where a test waits for them.
MANUAL = Policy(tick=3600.0)
LIMITS = Limits(client_grace=0.3, payment_timeout=10.0, drain_timeout=10.0, duty_timeout=20.0)


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
            await self.chain.send("EfedToken", "transfer", account.address, 1000 * WEI)
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

    async def infos(self, apps: Sequence[NodeApp] | None = None) -> list[NodeInfo]:
        """The registrations, in route order."""
        return [await self.chain.node(app.address) for app in (apps or self.apps)]

    async def session(self, **options: Any) -> Session:
        """A session over all running nodes."""
        return await open_session(self.chain, self.model_id, await self.infos(), **options)

    async def client(self, session: Session | None = None) -> RawClient:
        """A client of all running nodes; use it as a context manager."""
        return RawClient(self.chain, session or await self.session(), await self.infos())

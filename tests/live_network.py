"""What the `deployed` fixture hands to tests, and waiting for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eth_account.signers.local import LocalAccount

from efedllm.chain import Chain, Deployment
from efedllm_deploy.deployer import deploy_contracts
from efedllm_deploy.devclock import DevClock
from efedllm_deploy.local import dev_account
from efedllm_deploy.profile import Profile

_T = TypeVar("_T")


@dataclass(frozen=True)
class LiveNetwork:
    """Contracts on a running local chain. Accounts 0 to 9 have ETH; account 0 deployed and holds all EFED."""

    rpc_url: str
    deployment: Deployment
    path: Path

    @classmethod
    def deploy(cls, rpc_url: str, profile: Profile, out: Path) -> LiveNetwork:
        """Fresh contracts of a profile, for a synchronous fixture; the deployment's file lies in `out`."""
        done = run_in_thread(deploy_contracts(rpc_url, dev_account(), profile, out))
        return cls(rpc_url, done.deployment, done.path)

    @staticmethod
    def account(index: int = 0) -> LocalAccount:
        """A funded development account."""
        return dev_account(index)

    async def connect(self, index: int | None = 0, **options: Any) -> Chain:
        """A connection for a development account, or a read-only one for None."""
        account = None if index is None else dev_account(index)
        return await Chain.connect(self.rpc_url, self.deployment, account, **options)

    def clock(self, chain: Chain) -> DevClock:
        """The clock of this chain."""
        return DevClock(chain.rpc, self.deployment.genesis, self.deployment.epoch_length)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 20.0) -> None:
    """Wait until `condition` holds; AssertionError naming `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        if await condition():
            return
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.05)


def run_in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run async work from a synchronous fixture, away from the tests' event loops."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()

"""Fixtures of the chain tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.chain.drop_proxy import DropProxy, ProxyMaker


@pytest_asyncio.fixture
async def proxies() -> AsyncIterator[ProxyMaker]:
    """Makes proxies in front of an RPC address, stopped at the end."""
    made: list[DropProxy] = []

    async def make(target: str) -> DropProxy:
        proxy = DropProxy(target)
        await proxy.start()
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        await proxy.stop()

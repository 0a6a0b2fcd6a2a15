"""Probing nodes over real HTTP, and choosing a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from efedllm.chain.types import ModelInfo, NodeInfo
from efedllm.errors import ConfigError
from efedllm_client.routes.choose import choose_route
from efedllm_client.routes.discovery import choose_model, probe_all

CHAIN_ID = 1337


def node(index: int, endpoint: str, lo: int = 0, hi: int = 4) -> NodeInfo:
    return NodeInfo(
        address=f"0x{index:040x}",
        signer=f"0x{1000 + index:040x}",
        lo=lo,
        hi=hi,
        price_per_ktok=10,
        status=1,
        model_id=bytes(32),
        shard_root=bytes([9]) * 32,
        endpoint=endpoint,
        stake_active=0,
        stake_unbonding=0,
        trust_ppm=0,
        standing=1,
        jailed_until=0,
        offences=0,
        owed=0,
    )


def model(first: int, status: int = 1) -> ModelInfo:
    return ModelInfo(bytes([first]) * 32, "0x", bytes(32), bytes(32), 4, 8, 10_000, 0, 0, status, "", 1)


@asynccontextmanager
async def server(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], health: int = 200
) -> AsyncIterator[str]:
    async def healthz(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=health)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/v1/info", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def answering(info: Any) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.json_response(info)

    return handler


async def test_a_node_that_answers_is_usable_with_its_queue() -> None:
    info = {"node": node(1, "").address, "chain_id": CHAIN_ID, "queue": 3}
    async with server(answering(info)) as url:
        (found,) = await probe_all([node(1, url + "/")], CHAIN_ID)
    assert found.usable
    assert found.queue == 3
    assert found.latency_ms is not None
    assert found.latency_ms > 0
    assert found.shard_root == bytes([9]) * 32


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"node": "0x" + "ab" * 20, "chain_id": CHAIN_ID}, "another node"),
        ({"node": f"0x{1:040x}", "chain_id": 1}, "it serves chain 1"),
        ([1, 2], "no object"),
        ({}, "another node"),
    ],
)
async def test_an_impostor_is_not_usable(info: Any, problem: str) -> None:
    async with server(answering(info)) as url:
        (found,) = await probe_all([node(1, url)], CHAIN_ID)
    assert not found.usable
    assert problem in found.problem


async def test_a_node_that_is_shutting_down_is_not_usable() -> None:
    info = {"node": node(1, "").address, "chain_id": CHAIN_ID}
    async with server(answering(info), health=503) as url:
        (found,) = await probe_all([node(1, url)], CHAIN_ID)
    assert not found.usable
    assert found.problem == "it is shutting down"


async def test_dead_slow_and_broken_nodes_cost_bounded_time_and_say_why() -> None:
    release = asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async def broken(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    async with server(slow) as slow_url, server(broken) as broken_url:
        nodes = [node(1, "http://127.0.0.1:1"), node(2, slow_url), node(3, broken_url), node(4, "nonsense")]
        found = await probe_all(nodes, CHAIN_ID, seconds=2.0)
        release.set()
    assert [c.usable for c in found] == [False] * 4
    assert "cannot connect" in found[0].problem
    assert found[1].problem == "timeout"
    assert found[2].problem == "HTTP 500"
    assert found[3].problem


async def test_unreachable_nodes_show_as_uncovered_layers() -> None:
    found = await probe_all([node(1, "http://127.0.0.1:1", 0, 2)], CHAIN_ID, seconds=0.5)
    with pytest.raises(ConfigError) as caught:
        choose_route(found, 4)
    assert caught.value.code == "layers-not-covered"
    assert "0..3" in caught.value.message


def test_choosing_a_model() -> None:
    first, second, old = model(0xAA), model(0xAB), model(0xCC, status=2)
    assert choose_model([first, old], None) == first
    assert choose_model([first, second, old], "0xab") == second
    assert choose_model([first, second, old], "0x" + "cc" * 32) == old
    for models, wanted, code in (
        ([], None, "unknown-model"),
        ([first, second], None, "choose-model"),
        ([first, second], "0xa", "unknown-model"),
        ([first], "0xdd", "unknown-model"),
        ([first], "0x", "unknown-model"),
    ):
        with pytest.raises(ConfigError) as caught:
            choose_model(models, wanted)
        assert caught.value.code == code

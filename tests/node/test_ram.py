"""A node whose layers do not fit in its memory serves, slower, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from efedllm_node.app import NodeApp
from tests.node.node_kit import Lab
from tests.node.test_generation import PROMPT, get


def fits(model_dir: Path, ram: int) -> bool:
    """Whether an engine with all layers takes a budget of `ram` bytes."""
    try:
        ShardEngine.load(model_dir, 0, 8, ram=ram)
    except ModelError:
        return False
    return True


def least_ram(model_dir: Path) -> int:
    """The smallest budget in whole MB that an engine with all layers takes; below 1 GB."""
    return next(ram for ram in range(10**6, 10**9, 10**6) if fits(model_dir, ram))


async def test_a_node_within_a_budget_gives_the_same_tokens_and_says_how_slow_it_is(lab: Lab) -> None:
    whole = await lab.start(1, (0, 8))
    async with await lab.client() as client:
        _, free = await client.generate(PROMPT, 6, 20)
    assert json.loads((await get(f"{whole.endpoint}/v1/info"))[1])["slowdown"] == 1.0
    await lab.stop(whole)
    with pytest.raises(ModelError) as caught:
        await NodeApp(await lab.config(1, (0, 8), ram=1000)).start()
    assert caught.value.code == "ram-exceeded"
    least = least_ram(lab.model_dir)
    tight = await lab.start(1, (0, 8), ram=least + 10**6)
    async with await lab.client() as client:
        _, within = await client.generate(PROMPT, 6, 20)
    assert within.tokens == free.tokens
    assert tight.tiers is not None
    info = json.loads((await get(f"{tight.endpoint}/v1/info"))[1])
    assert info["slowdown"] == tight.tiers.slowdown >= 1
    assert f"efedllm_node_slowdown {tight.tiers.slowdown}" in (await get(f"{tight.endpoint}/metrics"))[1].decode()

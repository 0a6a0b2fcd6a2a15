"""Routes of one node and of three."""

from __future__ import annotations

from dataclasses import replace

from tests.node.node_kit import LIMITS, Lab
from tests.node.test_generation import PROMPT, faults, greedy


async def test_one_node_with_all_layers_closes_the_ring_alone(lab: Lab) -> None:
    await lab.start(1, (0, 8))
    async with await lab.client() as client:
        spec, outcome = await client.generate(PROMPT, 9, 40)
    assert outcome.tokens == greedy(lab.model_dir, PROMPT, 9)
    assert faults(client, spec, outcome, PROMPT) == []


async def test_three_nodes_and_a_prompt_longer_than_a_chunk(lab: Lab) -> None:
    limits = replace(LIMITS, chunk_tokens=7)
    prompt = [(i * 37) % 96 for i in range(40)]
    await lab.start_route(((0, 2), (2, 5), (5, 8)), limits=limits)
    async with await lab.client() as client:
        spec, outcome = await client.generate(prompt, 8, 60)
    assert outcome.tokens == greedy(lab.model_dir, prompt, 8)
    assert faults(client, spec, outcome, prompt) == []

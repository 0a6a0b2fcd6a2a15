"""The float profile on node processes: chosen by an option, sampled in floats, rounded on the wire where asked to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from efedllm.models.manifest import Manifest
from efedllm_client.api import Client
from efedllm_client.jobs.generation import GenerationFinished
from efedllm_client.jobs.options import GenerateOptions
from efedllm_deploy.bundled import ModelChoice
from efedllm_deploy.layout import NetworkOptions
from efedllm_deploy.network import LocalNetwork
from tests.network.generate_kit import PROMPT, expected

pytestmark = [pytest.mark.network, pytest.mark.asyncio(loop_scope="module")]

SAMPLED = GenerateOptions(max_tokens=24, temperature=0.9, top_k=50, top_p=0.95, seed="11", stop_at_eos=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """Every layer on one node, no verifiers, on the other local chain."""
    home = tmp_path_factory.mktemp("float")
    model = ModelChoice.of("", keep=0.9, method="truncate", profile="float")
    options = NetworkOptions(home=home, chain="anvil", nodes=2, verifiers=0, model=model)
    async with LocalNetwork(options) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(network: LocalNetwork) -> AsyncIterator[Client]:
    async with Client.connect(home=network.home) as connected:
        yield connected


async def generate(client: Client, options: GenerateOptions) -> GenerationFinished:
    async with aclosing(client.events(PROMPT, options)) as events:
        (last,) = [event async for event in events if isinstance(event, GenerationFinished)]
    return last


async def test_a_float_model_is_served_as_one(network: LocalNetwork, client: Client) -> None:
    model = await client.model()
    assert (model.profile, model.constants_hash) == (0, bytes(32))
    assert Manifest.load(network.model_dir).profile == "float"
    done = await generate(client, SAMPLED)
    assert client.report is not None
    assert client.report.receipts_ok
    assert list(done.token_ids) == expected(network.model_dir, done.prompt_ids, SAMPLED)
    rounded = await generate(client, GenerateOptions(max_tokens=24, wire="bf16", stop_at_eos=False))
    assert len(rounded.token_ids) == 24
    assert client.report.receipts_ok

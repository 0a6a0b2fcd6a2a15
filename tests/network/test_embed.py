"""Embedding texts with an encoder on real node processes: the states of the unsplit model, receipts that link."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModel

from efedllm.chain.amounts import cost_of_tokens
from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.protocol import StepItem
from efedllm.errors import EfedError
from efedllm_client.api import Client
from efedllm_client.jobs.embedding import Embedded
from efedllm_client.jobs.embedding_job import mean_pooled
from efedllm_client.jobs.options import GenerateOptions
from efedllm_deploy.bundled import ModelChoice
from efedllm_deploy.layout import NetworkOptions
from efedllm_deploy.network import LocalNetwork
from tests.model_fixtures import with_words
from tests.network.generate_kit import efedllm

pytestmark = [pytest.mark.network, pytest.mark.asyncio(loop_scope="module")]

TEXTS = ["w1 w2 w3 w4 w5", "w9 w8 w7", "w1 w2 w3 w4 w6", " ".join(f"w{i % 90}" for i in range(64))]


@pytest.fixture(scope="module")
def encoder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("encoder") / "words"
    with_words(checkpoint("bert"), target)
    return target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """The encoder with float32 weights over two nodes."""
    home = tmp_path_factory.mktemp("network")
    model = ModelChoice.of(str(encoder), keep=1.0, quant="none")
    async with LocalNetwork(NetworkOptions(home=home, nodes=2, verifiers=0, model=model)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(network: LocalNetwork) -> AsyncIterator[Client]:
    async with Client.connect(home=network.home) as connected:
        yield connected


async def embed(client: Client, texts: list[str]) -> list[Embedded]:
    async with aclosing(client.embeddings(texts, normalize=False)) as events:
        return [event async for event in events if isinstance(event, Embedded)]


async def test_vectors_are_those_of_the_unsplit_model(network: LocalNetwork, encoder: Path, client: Client) -> None:
    found = await embed(client, TEXTS)
    assert [item.index for item in found] == [0, 1, 2, 3]
    reference = AutoModel.from_pretrained(encoder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model = await client.model()
    tokenizer = await client.tokenizer(model, await client.nodes(model))
    whole = EncoderEngine.load(network.model_dir, 0, 8)
    price = sum(node.place.price for node in network.nodes if node.place is not None)
    for text, item in zip(TEXTS, found, strict=True):
        ids = np.array(tokenizer.encode(text), dtype=np.int32)
        states = whole.step([StepItem(whole.new_sequence(), ids)])[0]
        with torch.no_grad():
            wanted = reference(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0].numpy()
        np.testing.assert_array_equal(states, wanted)
        assert list(item.vector) == mean_pooled(wanted, normalize=False)
        outcome = item.outcome
        assert outcome.findings == []
        assert [commit is not None for commit in outcome.record.commits] == [True, True]
        assert all(commit.commit.tokens == len(ids) for commit in outcome.record.commits if commit is not None)
        assert outcome.record.emitted == []
        assert outcome.receipt is not None
        assert outcome.failure is None
    assert sum(item.outcome.cost for item in found) == cost_of_tokens(sum(item.tokens for item in found), price)


async def test_an_encoder_does_not_generate(client: Client) -> None:
    async with aclosing(client.events("w1 w2", GenerateOptions(max_tokens=4))) as events:
        with pytest.raises(EfedError) as refused:
            await anext(events)
    assert refused.value.code == "wrong-task"


async def test_the_command_line(network: LocalNetwork) -> None:
    code, out, err = await efedllm(network, "embed", TEXTS[0], TEXTS[2], "--json")
    assert code == 0, err
    first, second = json.loads(out)["embeddings"]
    assert len(first["embedding"]) == 32
    assert abs(sum(value * value for value in first["embedding"]) - 1) < 1e-9
    assert first["receipts_ok"]
    assert second["receipts_ok"]
    assert second["session_id"] == first["session_id"]
    code, out, err = await efedllm(network, "embed", TEXTS[0], TEXTS[2])
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == ["0", "1"]
    assert len(err.splitlines()) == 1
    code, out, err = await efedllm(network, "embed", " ".join(["w1"] * 65), "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "too-long"

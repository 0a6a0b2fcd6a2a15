"""An exact model on real nodes: integer sampling, profile 1 in every commitment, nothing rounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.messages import JobSpec
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.errors import ModelError, ProtocolError
from efedllm.models.manifest import Manifest
from efedllm.sampling.exact import sample_exact
from efedllm.sampling.float import SamplingSpec
from efedllm_deploy.publish import publish
from tests.live_network import LiveNetwork
from tests.node.node_kit import Lab, open_lab, settled_copy

PROMPT = [7, 3, 90, 11, 42]
WARM: dict[str, Any] = {"temperature_milli": 1500, "top_k": 40, "top_p_ppm": 970_000, "seed": bytes(range(32))}


@pytest.fixture(scope="module")
def exact_model(published: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return settled_copy(published("llama", 0.9, "int8"), tmp_path_factory.mktemp("exact") / "model")


@pytest_asyncio.fixture
async def exact_lab(unhurried: LiveNetwork, exact_model: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(unhurried, exact_model, tmp_path) as made:
        yield made


def sampled(model: Path, prompt: Sequence[int], spec: JobSpec) -> list[int]:
    """What one exact engine with all layers generates."""
    engine = ExactShardEngine.load(model, 0, 8)
    sequence, ids = engine.new_sequence(), list(prompt)
    feed = ids
    for _ in range(spec.max_new_tokens):
        hidden = engine.step([StepItem(sequence, np.array(feed, dtype=np.int32))])[0]
        ids.append(sample_exact(engine.logits(hidden[-1:])[0], SamplingSpec.from_job(spec), len(ids)))
        feed = ids[-1:]
    return ids[len(prompt) :]


async def test_two_nodes_give_the_tokens_of_one_exact_engine(exact_lab: Lab) -> None:
    model = await exact_lab.chain.model(exact_lab.model_id)
    manifest = Manifest.load(exact_lab.model_dir)
    assert (model.profile, model.constants_hash) == (1, manifest.constants_hash)
    await exact_lab.start_route()
    async with await exact_lab.client() as client:
        spec, outcome = await client.generate(PROMPT, 20, 60, **WARM)
        assert outcome.tokens == sampled(exact_lab.model_dir, PROMPT, spec)
        assert [signed.commit.profile for signed in outcome.commits if signed is not None] == [1, 1]
        rounded = client.spec(PROMPT, 4, wire_dtype=int(WireDtype.BF16))
        with pytest.raises(ProtocolError) as caught:
            await client.open_job(rounded, PROMPT, 100)
        assert caught.value.code == "wrong-wire"


async def test_a_node_does_not_serve_what_was_registered_with_other_constants(exact_lab: Lab) -> None:
    """Every answer of it would be found wrong."""
    manifest = Manifest.load(exact_lab.model_dir)
    forged = manifest.with_profile("exact", bytes([9]) * 32)
    forged.save(exact_lab.model_dir)
    try:
        exact_lab.model_id = (await publish(exact_lab.chain, exact_lab.model_dir)).model_id
        with pytest.raises(ModelError) as caught:
            await exact_lab.start(1, (0, 3))
    finally:
        manifest.save(exact_lab.model_dir)
    assert caught.value.code == "wrong-constants"


async def test_a_node_takes_the_registered_manifest_only(exact_lab: Lab) -> None:
    manifest = Manifest.load(exact_lab.model_dir)
    manifest.with_profile("float").save(exact_lab.model_dir)
    try:
        with pytest.raises(ModelError) as caught:
            await exact_lab.start(1, (0, 3))
    finally:
        manifest.save(exact_lab.model_dir)
    assert caught.value.code == "wrong-manifest"

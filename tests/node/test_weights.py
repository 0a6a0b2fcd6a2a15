"""What a node must not serve, as every verifier would find it wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from efedllm.chain.types import ModelInfo
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm_node.compute.weights import check_registered


def test_a_model_registered_with_another_shape_is_not_served(published: Callable[..., Path]) -> None:
    """Auditors ask for rows of the registered width: whatever a node shows would count as withheld."""
    directory = published("llama")
    m = Manifest.load(directory)
    model = ModelInfo(bytes(32), "0x", m.root, m.hash(), m.layers, m.hidden, m.rank_bps, m.quant_code, 0, 1, "", 1)
    engine = ShardEngine.load(directory, 0, 1)
    check_registered(engine, model)
    for wrong in (replace(model, hidden=m.hidden + 1), replace(model, layers=m.layers + 1)):
        with pytest.raises(ModelError) as caught:
            check_registered(engine, wrong)
        assert caught.value.code == "wrong-shape"

"""The published float32 model, once for all verifier tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.verifier.audit_lab import publish_float32


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_float32(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.exact_helpers import MODELS, publish_counters
from tests.model_fixtures import bundled_model, checkpoint, published

__all__ = ["bundled_model", "checkpoint", "published"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models of `exact_helpers` by name, family-form."""
    base = tmp_path_factory.mktemp("exact")
    for family, form in MODELS:
        publish_counters(base / f"{family}-{form}", family, form)
    return {f"{family}-{form}": base / f"{family}-{form}" for family, form in MODELS}

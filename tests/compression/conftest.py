from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model_fixtures import bundled_model, checkpoint, published, with_words

__all__ = ["bundled_model", "checkpoint", "published"]


@pytest.fixture(scope="session")
def worded(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random checkpoint with tokenizer and calibration.txt."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("worded") / family
            with_words(checkpoint(family), made[family])
        return made[family]

    return make

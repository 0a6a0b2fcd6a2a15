"""Taking the taps of a layer pass; `engine.taps` says what they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.exact.steps import Steps
from efedllm.engine.taps import tap_coordinates


class Tap:
    """Takes the canonical tap bytes of the rows of one layer pass."""

    def __init__(self, weights_root: bytes, layer: int) -> None:
        self._root = weights_root
        self._layer = layer
        self._blocks: list[npt.NDArray[np.uint8]] = []

    def take(self, steps: Steps, hidden: Tensor) -> None:
        """hidden float64 [n, width]: the next rows of the pass."""
        where = torch.tensor(tap_coordinates(self._root, self._layer, hidden.shape[1]))
        self._blocks.append(steps.tap(hidden, where))

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """uint8 [n, TAP_BYTES] of the rows taken."""
        return np.concatenate(self._blocks)

"""Inputs that strain the numerics of a hop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


def strained(given: npt.NDArray[Any], vocab: int, positions: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Pairs (name, input) made from one input of a hop, on which honest machines differ most.

    given: token ids int32 [n], or rows float32 [n, hidden]; vocab: size of the vocabulary; positions: length of the
    inputs made from nothing. Of token ids: repeated ones; of rows: outliers, large and small residuals, equal rows.
    """
    if given.ndim == 1:
        yield "constant tokens", np.full(positions, 11 % vocab, np.int32)
        yield "two tokens in turn", ((np.arange(positions, dtype=np.int32) % 2) * 77 + 5) % vocab
        yield "tokens far apart", np.arange(positions, dtype=np.int32) * max(1, vocab // positions) % vocab
        return
    x = np.asarray(given, np.float32)
    yield "residual x 1e2", x * np.float32(1e2)
    yield "residual x 1e4", x * np.float32(1e4)
    yield "residual x 1e-4", x * np.float32(1e-4)
    outlier = x.copy()
    outlier[:, 3] *= 1000
    yield "one outlier dimension", outlier
    spikes = x.copy()
    spikes[::5, 17] += 3000
    yield "massive activations", spikes
    yield "equal rows", np.repeat(x[:1], positions, axis=0)
    signs = x.copy()
    signs[::2] *= -1
    yield "signs in turn", signs

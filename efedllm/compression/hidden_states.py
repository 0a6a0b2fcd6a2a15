"""Hidden states of a calibration text, in memory or, when there are many, in a file read and written piece by piece.

Plain reads and writes: pages of a mapping would count as the process's own memory.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LARGE = 256 << 20
"""Bytes from which states go to a file."""


class States:
    """float32 [slots, windows, window, hidden], read and written by windows of one slot."""

    def __init__(self, shape: tuple[int, int, int], slots: int, scratch: Path | None) -> None:
        """In `scratch`, which is created and removed by `close`; in memory without one."""
        self.shape = shape
        self._scratch = scratch
        self._memory = torch.empty(slots, *shape) if scratch is None else None
        self._row = 4 * shape[1] * shape[2]
        self._file = None if scratch is None else os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def read(self, slot: int, start: int, stop: int) -> Tensor:
        """Windows [start, stop); a copy."""
        stop = min(stop, self.shape[0])
        if self._memory is not None:
            return self._memory[slot, start:stop].clone()
        assert self._file is not None
        data = np.empty((stop - start, *self.shape[1:]), dtype=np.float32)
        view = data.reshape(-1).view(np.uint8).data
        at = self._row * (slot * self.shape[0] + start)
        done = 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], at + done)
            if count == 0:
                raise OSError(f"{self._scratch} is shorter than what was written to it")
            done += count
        return torch.from_numpy(data)

    def write(self, slot: int, start: int, values: Tensor) -> None:
        if self._memory is not None:
            self._memory[slot, start : start + len(values)] = values
            return
        assert self._file is not None
        view = values.detach().contiguous().numpy().reshape(-1).view(np.uint8).data
        at = self._row * (slot * self.shape[0] + start)
        done = 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], at + done)

    def close(self) -> None:
        self._memory = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._scratch is not None:
            self._scratch.unlink(missing_ok=True)

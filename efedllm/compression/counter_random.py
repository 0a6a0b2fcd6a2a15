"""Random numbers that are the same everywhere: sha256 of a label and a counter."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def random_bytes(label: str, start: int, count: int) -> bytes:
    """Bytes [start, start + count) of the stream sha256(label | counter); start is a multiple of 32."""
    first, blocks = start // 32, (count + 31) // 32
    prefix = label.encode()
    stream = b"".join(hashlib.sha256(prefix + i.to_bytes(8, "big")).digest() for i in range(first, first + blocks))
    return stream[:count]


def uniforms(label: str, start: int, count: int) -> Tensor:
    """float64 in [0, 1): numbers [start, start + count) of the stream; start is a multiple of 4."""
    words = np.frombuffer(random_bytes(label, 8 * start, 8 * count), dtype=">u8")
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def signs(label: str, start: int, count: int) -> Tensor:
    """float32, +1 or -1: numbers [start, start + count) of the stream; start is a multiple of 256."""
    data = np.frombuffer(random_bytes(label, start // 8, (count + 7) // 8), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(data)[:count].astype(np.float32) * 2 - 1)


def permutation(label: str, count: int) -> list[int]:
    """The numbers below `count` in the order of their hashes."""
    prefix = label.encode()
    return sorted(range(count), key=lambda i: hashlib.sha256(prefix + i.to_bytes(8, "big")).digest())

"""The compiled Keccak-256 (keccak.c) of many messages at once, through ctypes. numpy and torch are not needed.

Optional like the products: `keccak_library` is None where it was not built or EFEDLLM_NATIVE=0.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_char_p, c_int64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from efedllm.kernels.stamp import open_library

LIBRARY = Path(__file__).with_name("libkeccak.so")
"""Where the build puts it, on every platform."""

_SWITCH = "EFEDLLM_NATIVE"
_DIGEST = 32


@dataclass(frozen=True, eq=False)
class KeccakLibrary:
    """Functions of keccak.c. Calls release the GIL."""

    _keccak: Any
    _merkle: Any

    def digests(self, messages: bytes, size: int) -> bytes:
        """Keccak-256 of every message of `size` bytes, size >= 1, in `messages`, 32 bytes each.

        Raises ValueError unless they are whole messages.
        """
        if size < 1 or len(messages) % size:
            raise ValueError(f"{len(messages)} bytes are not whole messages of {size}")
        count = len(messages) // size
        out = ctypes.create_string_buffer(_DIGEST * count)
        self._keccak(messages, count, size, out)
        return out.raw

    def merkle(self, leaves: bytes, pad: bytes) -> bytes:
        """Root over one or more leaves of 32 bytes, of nodes K(01 | left | right); `pad` stands for absent leaves.

        Raises ValueError unless they are whole leaves.
        """
        if not leaves or len(leaves) % _DIGEST or len(pad) != _DIGEST:
            raise ValueError(f"{len(leaves)} bytes are not leaves of {_DIGEST}")
        nodes = ctypes.create_string_buffer(leaves, len(leaves))
        self._merkle(nodes, len(leaves) // _DIGEST, ctypes.create_string_buffer(pad, _DIGEST))
        return nodes.raw[:_DIGEST]


def load_keccak(path: Path) -> KeccakLibrary:
    """Raises OSError when `path` cannot be loaded, or was built from other sources."""
    handle = open_library(path)
    keccak, merkle = handle.efl_keccak, handle.efl_merkle
    keccak.argtypes, keccak.restype = [c_char_p, c_int64, c_int64, c_char_p], None
    merkle.argtypes, merkle.restype = [c_char_p, c_int64, c_char_p], None
    return KeccakLibrary(keccak, merkle)


@cache
def keccak_library() -> KeccakLibrary | None:
    """The library of this installation, or None."""
    if os.environ.get(_SWITCH, "1") == "0" or sys.byteorder != "little":
        return None
    try:
        return load_keccak(LIBRARY)
    except OSError:
        return None

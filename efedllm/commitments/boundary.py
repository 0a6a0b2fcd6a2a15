"""The Merkle tree of one boundary of one job, grown row by row while the job runs."""

from __future__ import annotations

import struct
from typing import Final

from efedllm.commitments.canonical import WireDtype, decode, itemsize
from efedllm.commitments.hashing import as_uint, keccak_each, sha256
from efedllm.commitments.leaves import act_prefix, boundary_root, chunk_hash
from efedllm.errors import ProtocolError

_ROW: Final = struct.Struct(">IBI")
MAX_POSITIONS: Final = 1 << 24
"""Rows one boundary may have. Far beyond any context length; bounds the memory of a tree."""


class BoundaryTree:
    """Leaves of a boundary in position order.

    Appending costs two hashes a row; the tree itself is computed by `root()`, once, when the job ends.
    Payloads are canonical bytes (see `canonical.encode`); what comes from a peer must have passed `canonical.decode`
    before.
    """

    def __init__(self, job_id: bytes, boundary: int, dtype: WireDtype, dim: int) -> None:
        self.job_id = job_id
        self.boundary = boundary
        self.dtype = dtype
        self.dim = as_uint(dim, 32, "dim")
        if dim < 1 or (dtype is WireDtype.I32 and dim != 1):
            raise ProtocolError("bad-shape", f"A row of {dtype.name} cannot have {dim} elements.")
        self.row_bytes = dim * itemsize(dtype)
        self._prefix = act_prefix(job_id, boundary)
        self._leaves: list[bytes] = []

    @property
    def length(self) -> int:
        """Positions so far."""
        return len(self._leaves)

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """Leaf of every position so far."""
        return tuple(self._leaves)

    def append(self, payload: bytes) -> bytes:
        """Add the rows of the next positions and return the chunk hash an envelope signs for them.

        Raises ProtocolError "bad-length" unless `payload` is one or more whole rows.
        """
        if not payload or len(payload) % self.row_bytes:
            raise ProtocolError("bad-length", f"{len(payload)} bytes are not whole rows of {self.row_bytes} bytes.")
        first = len(self._leaves)
        count = len(payload) // self.row_bytes
        if first + count > MAX_POSITIONS:
            raise ProtocolError("too-long", f"A boundary holds at most {MAX_POSITIONS} positions.")
        view = memoryview(payload)
        size, prefix, dtype, dim = self.row_bytes, self._prefix, int(self.dtype), self.dim
        new = keccak_each(
            [prefix + _ROW.pack(first + i, dtype, dim) + sha256(view[i * size : (i + 1) * size]) for i in range(count)]
        )
        self._leaves += new
        return chunk_hash(new)

    def chunk(self, from_pos: int, n: int) -> bytes:
        """Chunk hash of the `n` positions from `from_pos`. IndexError when they are not all there."""
        if from_pos < 0 or n < 1 or from_pos + n > len(self._leaves):
            raise IndexError(f"positions {from_pos}..{from_pos + n} of {len(self._leaves)}")
        return chunk_hash(self._leaves[from_pos : from_pos + n])

    def root(self) -> bytes:
        """Boundary root over the positions so far."""
        return boundary_root(self.job_id, self.boundary, self._leaves)


def verify_boundary(job_id: bytes, boundary: int, dtype: WireDtype, dim: int, payload: bytes, root: bytes) -> bool:
    """Whether `payload` is canonical and hashes to `root`. Malformed bytes are False, not an error."""
    try:
        decode(payload, dtype, dim)
        tree = BoundaryTree(job_id, boundary, dtype, dim)
        if payload:
            tree.append(payload)
        return tree.root() == root
    except ProtocolError:
        return False

"""Taps of an exact hop: committed by the node, recomputed and attested by verifiers, opened once all have attested.

The tap of a position is a short row of canonical bytes that only the computation of the hop yields and that never
crosses the wire (`docs/exact.md`). Integers are big-endian and packed, tags as in `leaves`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from efedllm.commitments import merkle
from efedllm.commitments.eip712 import parse_hex, to_hex
from efedllm.commitments.hashing import ZERO32, as_h32, as_uint, keccak, keccak_each, sha256
from efedllm.commitments.leaves import LEAF, ROOT
from efedllm.errors import ProtocolError

TAG_TAP = b"EFL.tap.1".ljust(16, b"\0")
TAG_POSITION = b"EFL.tap.pos.1".ljust(16, b"\0")
TAG_CHOSEN = b"EFL.tap.leaf.1".ljust(16, b"\0")
TAG_DIGEST = b"EFL.tap.node.1".ljust(16, b"\0")

DRAWN_POSITIONS = 3
"""Positions of a leaf drawn from the seed, with repetition; the last position is always attested as well."""

_POSITION = struct.Struct(">I")


class TapTree:
    """Tap leaves of one job at one hop in position order, grown while the job runs. `row_bytes`: bytes of one tap."""

    def __init__(self, job_id: bytes, hop: int, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._bound = TAG_TAP + as_h32(job_id, "job_id") + struct.pack(">H", as_uint(hop, 16, "hop"))
        self._leaves: list[bytes] = []

    @property
    def length(self) -> int:
        """Positions so far."""
        return len(self._leaves)

    def append(self, rows: bytes) -> None:
        """Add the taps of the next positions. Raises ProtocolError "bad-length" unless they are whole rows."""
        if len(rows) % self.row_bytes:
            raise ProtocolError("bad-length", f"{len(rows)} bytes are not whole taps of {self.row_bytes} bytes.")
        starts = range(0, len(rows), self.row_bytes)
        self._leaves += keccak_each(
            [
                _message(self._bound, position, rows[start : start + self.row_bytes])
                for position, start in enumerate(starts, len(self._leaves))
            ]
        )

    def root(self) -> bytes:
        """The aux root of a HopCommit: bound to job, hop and the number of positions."""
        return _root(self._bound, len(self._leaves), merkle.merkle(self._leaves))

    def proof(self, position: int) -> tuple[bytes, ...]:
        """Siblings of a position's leaf, bottom up. IndexError when there is no such position."""
        return tuple(merkle.proof(self._leaves, position))


def _message(bound: bytes, position: int, row: bytes) -> bytes:
    return LEAF + bound + _POSITION.pack(position) + sha256(row)


def _leaf(bound: bytes, position: int, row: bytes) -> bytes:
    return keccak(_message(bound, position, row))


def _root(bound: bytes, count: int, tree: bytes) -> bytes:
    return keccak(ROOT + bound + _POSITION.pack(count) + tree)


@dataclass(frozen=True)
class TapOpening:
    """The tap of one position, with its proof under an aux root."""

    position: int
    tap: bytes
    proof: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "tap": to_hex(self.tap),
            "proof": [to_hex(sibling) for sibling in self.proof],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises ProtocolError "bad-message"."""
        try:
            position = as_uint(value["position"], 32, "position")
            tap = parse_hex(value["tap"], "tap")
            proof = tuple(parse_hex(item, "proof", 32) for item in value["proof"])
        except (KeyError, TypeError) as error:
            raise ProtocolError("bad-message", f"A tap opening is malformed ({type(error).__name__}).") from error
        return cls(position, tap, proof)

    def proves(self, aux_root: bytes, job_id: bytes, hop: int, count: int) -> bool:
        """Whether this tap is the one that a hop of a job committed to under `aux_root`, over `count` positions."""
        bound = TAG_TAP + as_h32(job_id, "job_id") + struct.pack(">H", hop)
        if not 0 <= self.position < count:
            return False
        tree = merkle.root_of(_leaf(bound, self.position, self.tap), self.position, count, self.proof)
        return tree is not None and _root(bound, count, tree) == aux_root


def tap_positions(seed: bytes, hop_leaf: bytes, count: int) -> tuple[int, ...]:
    """Positions of an audited leaf of `count` positions that go into a tap digest, ascending, without repetition.

    The last one, and uint256(K(00 | tag | seed | hop leaf | u32 i)) modulo `count` for i below DRAWN_POSITIONS.
    """
    if count < 1:
        raise ValueError("a leaf has at least one position")
    head = LEAF + TAG_POSITION + as_h32(seed, "seed") + as_h32(hop_leaf, "hop leaf")
    drawn = (int.from_bytes(keccak(head + _POSITION.pack(i))) % count for i in range(DRAWN_POSITIONS))
    return tuple(sorted({count - 1, *drawn}))


def chosen_taps(seed: bytes, hop_leaf: bytes, rows: bytes, row_bytes: int) -> bytes:
    """What one audited leaf puts into the digest: K over its chosen positions and their taps.

    rows: the taps of all its positions.
    """
    parts = [LEAF, TAG_CHOSEN, as_h32(hop_leaf, "hop leaf")]
    for position in tap_positions(seed, hop_leaf, len(rows) // row_bytes):
        parts += [_POSITION.pack(position), rows[position * row_bytes : (position + 1) * row_bytes]]
    return keccak(b"".join(parts))


def tap_digest(leaves: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Digest of a node's epoch over (hop leaf, `chosen_taps`) of its audited leaves, in ascending order of the leaves;
    zero when there are none.
    """
    ordered: Sequence[tuple[bytes, bytes]] = sorted(leaves)
    if not ordered:
        return ZERO32
    head = ROOT + TAG_DIGEST + _POSITION.pack(len(ordered))
    return keccak(head + b"".join(as_h32(chosen, "chosen taps") for _, chosen in ordered))


def fingerprint(digest: bytes) -> int:
    """What the contracts keep of a tap digest: its low 32 bits. A verifier that did not compute hits it with chance
    2^-32: it commits before anybody reveals, so that it guesses blindly and once.
    """
    return int.from_bytes(as_h32(digest, "digest")[-4:])

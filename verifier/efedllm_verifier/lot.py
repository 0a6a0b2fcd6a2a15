"""Which leaves are audited: a lottery that anyone can repeat from the epoch's seed."""

from __future__ import annotations

from efedllm.commitments.hashing import keccak


def is_sampled(seed: bytes, leaf: bytes, rate_ppm: int) -> bool:
    """Whether floor(uint256(K(seed | leaf)) * 10^6 / 2^256) is below the node's audit rate in parts per million."""
    return int.from_bytes(keccak(seed + leaf)) * 1_000_000 >> 256 < rate_ppm

"""What one signature, one check and one hashed row cost, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import Domain, Envelope
from efedllm.commitments.signing import Signer, recover


@dataclass(frozen=True)
class UnitCosts:
    """Microseconds each, best of several rounds: what the operation costs when nothing else interferes."""

    sign_us: float
    check_us: float
    digest_us: float
    hash_row_us: float
    encode_row_us: float


def measure(hidden: int, rounds: int = 5, repeat: int = 200) -> UnitCosts:
    """Costs for rows of `hidden` float32 values."""
    signer = Signer(keccak(b"bench"))
    domain = Domain(1, "0x" + "11" * 20)
    envelope = Envelope(bytes(32), 1, 7, 1, keccak(b"chunk"), bytes(32))
    digest = envelope.digest(domain)
    signature = signer.sign(digest)
    row = np.sin(np.arange(hidden, dtype=np.float32)).reshape(1, hidden)
    payload = encode(row, WireDtype.F32)
    tree = BoundaryTree(bytes(32), 1, WireDtype.F32, hidden)

    def best(action: Callable[[], object]) -> float:
        def once() -> float:
            start = time.perf_counter()
            for _ in range(repeat):
                action()
            return (time.perf_counter() - start) / repeat

        return min(once() for _ in range(rounds)) * 1e6

    return UnitCosts(
        sign_us=best(lambda: signer.sign(digest)),
        check_us=best(lambda: recover(digest, signature)),
        digest_us=best(lambda: envelope.digest(domain)),
        hash_row_us=best(lambda: tree.append(payload)),
        encode_row_us=best(lambda: encode(row, WireDtype.F32)),
    )


def authentication_us_per_token(costs: UnitCosts, hops: int) -> float:
    """Time on the critical path that one decoded token spends on signatures and hashes.

    Each of the `hops` messages of a round (hop to hop, and the last hop's token back to the first) is hashed and signed
    by its sender, hashed, checked and acknowledged with a signature by its receiver; the sender checks the
    acknowledgement. Each side makes the digest once.
    """
    per_message = 2 * (costs.digest_us + costs.hash_row_us + costs.sign_us + costs.check_us)
    return hops * per_message

"""Planted canaries: a job whose wrong answer the client that pays for it and the node that gives it agreed on.

The consent hides in the salt of the node's hop leaf, so it is on chain before the epoch's seed exists and looks like
any other leaf. Verifiers that fail a node name what failed by a fault digest; the node that opens exactly these
leaves as canaries is forgiven them (`docs/protocol.md`, section 9.2). Integers are big-endian and packed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from efedllm.commitments.eip712 import Domain, TypedMessage
from efedllm.commitments.hashing import ZERO32, as_h32, as_uint, keccak
from efedllm.commitments.leaves import LEAF, ROOT
from efedllm.commitments.signing import SIGNATURE_BYTES
from efedllm.errors import ProtocolError

TAG_CANARY = b"EFL.canary.1".ljust(16, b"\0")
TAG_PLACE = b"EFL.canary.pos.1".ljust(16, b"\0")
TAG_FAULT = b"EFL.fault.node.1".ljust(16, b"\0")
TAG_SHOWN = b"EFL.fault.doc.1".ljust(16, b"\0")

MAX_OPENINGS = 16
"""Leaves of one node and epoch that can be opened as canaries."""


@dataclass(frozen=True)
class Canary(TypedMessage):
    """A client's consent that one hop answers one of its jobs wrongly; signed by SessionKey.signer, in the domain of
    HopCommit.
    """

    NAME: ClassVar[str] = "Canary"
    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = (("bytes32", "jobId"), ("uint16", "hop"))
    job_id: bytes
    hop: int

    def digest(self, domain: Domain) -> bytes:
        """What the client's session key signs."""
        return domain.digest(self.struct_hash())


Canary.seal()


def _consent_hash(consent: bytes) -> bytes:
    if len(consent) != SIGNATURE_BYTES:
        raise ProtocolError("bad-signature", f"A consent is a signature of {SIGNATURE_BYTES} bytes.")
    return keccak(consent)


def canary_salt(job_id: bytes, hop: int, consent: bytes, nonce: bytes) -> bytes:
    """Salt of a canary's hop leaf: K(00 | tag | job | u16 hop | K(consent) | nonce). `nonce`: 32 random bytes.

    Raises ProtocolError "bad-message", or "bad-signature" for a consent that is not 65 bytes.
    """
    place = as_h32(job_id, "job_id") + struct.pack(">H", as_uint(hop, 16, "hop"))
    return keccak(LEAF + TAG_CANARY + place + _consent_hash(consent) + as_h32(nonce, "nonce"))


@dataclass(frozen=True)
class CanaryPlace:
    """Where a canary goes wrong: at `position`, and `choice` (256 bits) picks what stands there instead."""

    position: int
    choice: int


def canary_place(consent: bytes, nonce: bytes, positions: int) -> CanaryPlace:
    """The one of a job's `positions` at which a canary's input is exchanged; not 0 unless there is no other.

    K(00 | tag | K(consent) | nonce | u8 0) draws it, u8 1 the choice. `positions` counts those of the longest answer
    asked for, so that nobody finds every canary by computing prompts alone.
    """
    head = LEAF + TAG_PLACE + _consent_hash(consent) + as_h32(nonce, "nonce")
    drawn, choice = (int.from_bytes(keccak(head + bytes([i]))) for i in range(2))
    return CanaryPlace(0 if positions < 2 else 1 + drawn % (positions - 1), choice)


def shown_fault(leaf: bytes) -> bytes:
    """What stands in a fault digest for a leaf that failed by what its node or a neighbour showed, not by what is
    committed: K(00 | tag | leaf), which no opening explains. Else a node could show a good canary wrongly to some
    verifiers, be forgiven, and have those that passed it slashed.
    """
    return keccak(LEAF + TAG_SHOWN + as_h32(leaf, "hop leaf"))


def fault_digest(seed: bytes, leaves: Iterable[bytes]) -> bytes:
    """Digest of a node's failures of an epoch, each once: hop leaves computed wrongly, `shown_fault` of others, roots
    of batches that cannot be read; zero when there are none. `seed`: of the epoch, so that nobody can search beforehand
    for leaves whose digests collide.
    """
    failed = sorted({as_h32(leaf, "hop leaf") for leaf in leaves})
    if not failed:
        return ZERO32
    return keccak(ROOT + TAG_FAULT + as_h32(seed, "seed") + struct.pack(">I", len(failed)) + b"".join(failed))


def fingerprint(digest: bytes) -> int:
    """What the contracts keep of a tap or fault digest: its low 32 bits."""
    return int.from_bytes(as_h32(digest, "digest")[-4:])


def sample_ppm(seed: bytes, leaf: bytes) -> int:
    """floor(uint256(K(seed | leaf)) * 10^6 / 2^256): a leaf is audited iff this is below its node's audit rate."""
    return int.from_bytes(keccak(seed + leaf)) * 1_000_000 >> 256

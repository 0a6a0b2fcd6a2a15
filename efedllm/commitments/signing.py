"""secp256k1 signatures over 32-byte digests, by libsecp256k1."""

from __future__ import annotations

from coincurve import PrivateKey, PublicKey

from efedllm.commitments.hashing import as_address, keccak
from efedllm.errors import ProtocolError

SIGNATURE_BYTES = 65
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def _address(public_key: PublicKey) -> str:
    return as_address("0x" + keccak(public_key.format(compressed=False)[1:])[12:].hex())


class Signer:
    """A private key that signs digests. The key is never shown by repr.

    Raises ProtocolError("bad-key") when the bytes are no valid secp256k1 key.
    """

    def __init__(self, private_key: bytes) -> None:
        try:
            if len(private_key) != 32:
                raise ValueError
            self._key = PrivateKey(private_key)
        except ValueError:
            raise ProtocolError("bad-key", "A private key must be 32 bytes below the curve order.") from None
        self._address = _address(self._key.public_key)

    def __repr__(self) -> str:
        return f"Signer({self._address})"

    @property
    def address(self) -> str:
        """EIP-55 address of the key."""
        return self._address

    def sign(self, digest: bytes) -> bytes:
        """r | s | v, 65 bytes: low s, v 27 or 28, deterministic (RFC 6979)."""
        if len(digest) != 32:
            raise ProtocolError("bad-message", "A digest must be 32 bytes.")
        signature: bytes = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])


def recover(digest: bytes, sig: bytes) -> str:
    """Address that signed `digest`.

    Raises ProtocolError("bad-signature") unless `sig` is 65 bytes with v 27 or 28, s in the lower half (so that
    nobody can derive a second valid signature) and a recoverable point.
    """
    if len(digest) != 32 or len(sig) != SIGNATURE_BYTES or sig[64] not in (27, 28):
        raise ProtocolError("bad-signature", "A signature must be 65 bytes ending in 27 or 28.")
    if int.from_bytes(sig[32:64], "big") > _HALF_ORDER:
        raise ProtocolError(
            "bad-signature", "The signature is malleable: its s is in the upper half of the curve order."
        )
    try:
        return _address(PublicKey.from_signature_and_message(sig[:64] + bytes([sig[64] - 27]), digest, hasher=None))
    except Exception as error:
        raise ProtocolError("bad-signature", "The signature does not recover to any key.") from error


def is_signed_by(digest: bytes, sig: bytes, signers: frozenset[str]) -> bool:
    """Whether `sig` is sound and by one of `signers`, addresses as `recover` writes them."""
    try:
        return recover(digest, sig) in signers
    except ProtocolError:
        return False


def check(digest: bytes, sig: bytes, address: str) -> None:
    """Raise ProtocolError("bad-signature") unless `address` signed `digest`."""
    signer = recover(digest, sig)
    if signer != as_address(address):
        raise ProtocolError("bad-signature", f"The signature is by {signer}, not by {address}.")

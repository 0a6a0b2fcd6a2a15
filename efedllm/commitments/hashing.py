"""The two hash functions of the protocol and the checks on what they return.

Content (tensor rows, token ids, files) is digested with SHA-256, which is fast and an EVM precompile; trees and
identifiers use Keccak-256, which is what contracts compute.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from Crypto.Hash import keccak as _keccak
from eth_utils.address import to_checksum_address

from efedllm.errors import ProtocolError
from efedllm.kernels.keccak import keccak_library

ZERO32 = bytes(32)


def keccak(data: bytes) -> bytes:
    """Keccak-256 (the EVM's, not SHA3-256) of `data`: 32 bytes."""
    native = keccak_library()
    if native is not None and data and type(data) is bytes:
        return native.digests(data, len(data))
    return _keccak.Keccak_Hash(data, 32, False).digest()


def keccak_each(messages: list[bytes]) -> list[bytes]:
    """`keccak` of every one of `messages`, which are of one length: together they cost a fraction."""
    native = keccak_library()
    if native is None or len(messages) < 2 or not messages[0]:
        return [keccak(message) for message in messages]
    digests = native.digests(b"".join(messages), len(messages[0]))
    return [digests[at : at + 32] for at in range(0, len(digests), 32)]


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of `data`: 32 bytes."""
    return hashlib.sha256(data).digest()


def as_h32(value: object, name: str) -> bytes:
    """`value` if it is exactly 32 bytes, else ProtocolError("bad-message")."""
    if not isinstance(value, bytes) or len(value) != 32:
        raise ProtocolError("bad-message", f"{name} must be 32 bytes.")
    return value


def as_uint(value: object, bits: int, name: str) -> int:
    """`value` if it is an int in [0, 2**bits), else ProtocolError("bad-message")."""
    if type(value) is not int or not 0 <= value < (1 << bits):
        raise ProtocolError("bad-message", f"{name} must be an integer of at most {bits} bits.")
    return value


@lru_cache(maxsize=4096)
def _checksummed(value: str) -> str:
    if len(value) != 42 or not value.startswith("0x"):
        raise ProtocolError("bad-message", "An address must be 0x and 40 hex digits.")
    digits = value[2:]
    try:
        int(digits, 16)
        if not digits.isalnum():
            raise ValueError
    except ValueError:
        raise ProtocolError("bad-message", "An address must be 0x and 40 hex digits.") from None
    checksum = str(to_checksum_address("0x" + digits.lower()))
    if digits not in (digits.lower(), digits.upper()) and value != checksum:
        raise ProtocolError("bad-message", f"Address {value} has a wrong checksum.", "Copy the address again.")
    return checksum


def as_address(value: object, name: str = "address") -> str:
    """The EIP-55 form of a hex address; ProtocolError("bad-message") when malformed or its checksum is wrong."""
    if not isinstance(value, str):
        raise ProtocolError("bad-message", f"{name} must be an address.")
    return _checksummed(value)


def address_bytes(address: str) -> bytes:
    """The 20 bytes of an address."""
    return bytes.fromhex(as_address(address)[2:])

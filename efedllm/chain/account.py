"""An account that signs transactions in this process: secp256k1 by libsecp256k1, RLP as the chain reads it.

`eth_account` does the same, but imports a BLS library with it, which takes more than half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efedllm.commitments.hashing import address_bytes, keccak
from efedllm.commitments.signing import Signer


@dataclass(frozen=True)
class SignedTransaction:
    """What eth_sendRawTransaction takes, and the hash under which the chain then knows it."""

    raw_transaction: bytes
    hash: bytes


class LocalAccount:
    """A private key of 32 bytes and its address. The key is never shown by repr.

    Raises ProtocolError("bad-key") when the bytes are no valid secp256k1 key.
    """

    def __init__(self, private_key: bytes) -> None:
        self._key = bytes(private_key)
        self._signer = Signer(self._key)

    def __repr__(self) -> str:
        return f"LocalAccount({self.address})"

    @property
    def address(self) -> str:
        """EIP-55 address."""
        return self._signer.address

    @property
    def key(self) -> bytes:
        """The private key, 32 bytes."""
        return self._key

    def sign_transaction(self, transaction: Mapping[str, Any]) -> SignedTransaction:
        """Sign chainId, nonce, gas, value (all int), data (bytes), and `to` (address; absent to create a contract).

        With maxFeePerGas and maxPriorityFeePerGas (wei) it is a transaction of EIP-1559, with gasPrice one of EIP-155.
        """
        to = address_bytes(transaction["to"]) if "to" in transaction else b""
        chain_id = int(transaction["chainId"])
        payload = [int(transaction["gas"]), to, int(transaction["value"]), bytes(transaction["data"])]
        if "gasPrice" in transaction:
            fields = [int(transaction["nonce"]), int(transaction["gasPrice"]), *payload]
            parity, r, s = self._sign(keccak(rlp([*fields, chain_id, 0, 0])))
            raw = rlp([*fields, parity + 35 + 2 * chain_id, r, s])
        else:
            fees = [int(transaction["maxPriorityFeePerGas"]), int(transaction["maxFeePerGas"])]
            # The empty list holds no storage slots to be loaded beforehand.
            signed = [chain_id, int(transaction["nonce"]), *fees, *payload, []]
            raw = b"\x02" + rlp([*signed, *self._sign(keccak(b"\x02" + rlp(signed)))])
        return SignedTransaction(raw, keccak(raw))

    def _sign(self, digest: bytes) -> tuple[int, int, int]:
        """Parity of the curve point (0 or 1), r and s."""
        signature = self._signer.sign(digest)
        return signature[64] - 27, int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")


def rlp(item: int | bytes | list[Any]) -> bytes:
    """Recursive length prefix, the encoding that transactions are hashed and sent in. Integers are not negative."""
    if isinstance(item, list):
        body = b"".join(rlp(one) for one in item)
        return _length(len(body), 0xC0) + body
    data = item.to_bytes((item.bit_length() + 7) // 8, "big") if isinstance(item, int) else item
    if len(data) == 1 and data[0] < 0x80:
        return data
    return _length(len(data), 0x80) + data


def _length(size: int, base: int) -> bytes:
    if size < 56:
        return bytes([base + size])
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([base + 55 + len(digits)]) + digits

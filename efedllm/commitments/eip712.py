"""EIP-712 digests for flat structs (static members only), encoded directly as ABI words.

`eth_account` can do the same for any type at about a hundred times the cost; the tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Self

from efedllm.commitments.hashing import address_bytes, as_address, as_h32, as_uint, keccak, keccak_each
from efedllm.errors import ProtocolError

_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")


@dataclass(frozen=True)
class Domain:
    """Where a signature counts: a chain and the contract that would check it. Raises ProtocolError("bad-message")."""

    chain_id: int
    contract: str
    name: str = "EFL"
    version: str = "1"

    def __post_init__(self) -> None:
        as_uint(self.chain_id, 256, "chain_id")
        object.__setattr__(self, "contract", as_address(self.contract, "contract"))

    @property
    def separator(self) -> bytes:
        """The EIP-712 domain separator."""
        return _separator(self.name, self.version, self.chain_id, self.contract)

    def digest(self, struct_hash: bytes) -> bytes:
        """K(0x1901 | domain separator | struct hash)."""
        return keccak(b"\x19\x01" + self.separator + struct_hash)

    def digests(self, messages: Sequence[TypedMessage]) -> list[bytes]:
        """The digests of messages of one class."""
        head = b"\x19\x01" + self.separator
        hashes = keccak_each([message.encoding() for message in messages])
        return keccak_each([head + one for one in hashes])


@lru_cache(maxsize=64)
def _separator(name: str, version: str, chain_id: int, contract: str) -> bytes:
    return keccak(
        _DOMAIN_TYPE
        + keccak(name.encode())
        + keccak(version.encode())
        + chain_id.to_bytes(32, "big")
        + bytes(12)
        + address_bytes(contract)
    )


def word(kind: str, value: Any) -> bytes:
    """The 32-byte ABI word of a `uintN`, `bytes32` or `address` value."""
    if kind == "bytes32":
        return bytes(value)
    if kind == "address":
        return bytes(12) + bytes.fromhex(value[2:])
    return int(value).to_bytes(32, "big")


def parse_hex(value: object, name: str, length: int | None = None) -> bytes:
    """Bytes of a 0x-prefixed lower- or upper-case hex string; ProtocolError("bad-message") otherwise or on a wrong
    length.
    """
    if not isinstance(value, str) or not value.startswith("0x") or not value[2:].isascii():
        raise ProtocolError("bad-message", f"{name} must be a 0x hex string.")
    try:
        data = bytes.fromhex(value[2:])
        # bytes.fromhex skips white space, which would give one value several spellings.
        if len(value) != 2 + 2 * len(data):
            raise ValueError
    except ValueError:
        raise ProtocolError("bad-message", f"{name} must be a 0x hex string.") from None
    if length is not None and len(data) != length:
        raise ProtocolError("bad-message", f"{name} must be {length} bytes.")
    return data


def to_hex(data: bytes) -> str:
    """`data` as 0x and lower-case hex."""
    return "0x" + data.hex()


def refuse(condition: bool, message: str) -> None:
    """Raise ProtocolError("bad-message") if `condition` holds."""
    if condition:
        raise ProtocolError("bad-message", message)


def as_object(value: object, keys: frozenset[str], name: str) -> dict[str, Any]:
    """`value` if it is a JSON object with exactly `keys`; ProtocolError("bad-message") otherwise."""
    if not isinstance(value, dict) or value.keys() != keys:
        raise ProtocolError("bad-message", f"{name} must be an object with the keys {', '.join(sorted(keys))}.")
    return value


def checked(kind: str, value: object, name: str) -> Any:
    """`value` in its Python form for a Solidity type, or ProtocolError("bad-message")."""
    if kind == "bytes32":
        return as_h32(value, name)
    if kind == "address":
        return as_address(value, name)
    return as_uint(value, int(kind[4:]), name)


@dataclass(frozen=True)
class TypedMessage:
    """Base of the signed messages: subclasses list their Solidity members and declare dataclass fields in the same
    order.

    Construction checks every range and raises ProtocolError("bad-message"). Addresses are stored in EIP-55 form.
    """

    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = ()
    NAME: ClassVar[str] = ""
    _KINDS: ClassVar[tuple[tuple[str, str], ...]] = ()
    _KEYS: ClassVar[frozenset[str]] = frozenset()
    _TYPE_HASH: ClassVar[bytes] = b""

    @classmethod
    def seal(cls) -> None:
        """Derive the type hash and the field table; called once below each class."""
        members = ",".join(f"{kind} {name}" for kind, name in cls.SOLIDITY)
        cls._TYPE_HASH = keccak(f"{cls.NAME}({members})".encode())
        cls._KINDS = tuple((f.name, kind) for f, (kind, _) in zip(fields(cls), cls.SOLIDITY, strict=True))
        cls._KEYS = frozenset(name for name, _ in cls._KINDS)

    def __post_init__(self) -> None:
        for name, kind in self._KINDS:
            value = getattr(self, name)
            good = checked(kind, value, name)
            if good is not value:
                object.__setattr__(self, name, good)
        self._check()

    def _check(self) -> None:
        """Further rules of a message; raises ProtocolError("bad-message")."""

    def encoding(self) -> bytes:
        """What hashStruct is the hash of: type hash and members, of one length for all messages of a class."""
        return self._TYPE_HASH + b"".join([word(kind, getattr(self, name)) for name, kind in self._KINDS])

    def struct_hash(self) -> bytes:
        """EIP-712 hashStruct."""
        return keccak(self.encoding())

    def to_json(self) -> dict[str, Any]:
        """JSON form: bytes and addresses as 0x hex, integers as numbers."""
        out: dict[str, Any] = {}
        for name, kind in self._KINDS:
            value = getattr(self, name)
            out[name] = to_hex(value) if kind == "bytes32" else value
        return out

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The message behind `to_json`; ProtocolError("bad-message") on anything else, unknown or missing keys
        included.
        """
        data = as_object(value, cls._KEYS, cls.NAME)
        return cls(
            **{name: parse_hex(data[name], name, 32) if kind == "bytes32" else data[name] for name, kind in cls._KINDS}
        )

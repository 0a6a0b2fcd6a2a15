"""The payment channel: the terms that a session is opened with, and the vouchers that draw on it.

Both live in the domain {EfedSession, 1, chain, SessionEscrow}, where the contract checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from efedllm.commitments.eip712 import Domain, TypedMessage, as_object, parse_hex, refuse, to_hex, word
from efedllm.commitments.hashing import as_address, as_h32, as_uint, keccak

BPS = 10_000
MAX_HOPS = 64


def escrow_domain(chain_id: int, escrow: str) -> Domain:
    """The EIP-712 domain of SessionEscrow."""
    return Domain(chain_id, escrow, "EfedSession", "1")


@dataclass(frozen=True)
class Voucher(TypedMessage):
    """A running total the session pays, in wei of EFED, for `tokens` billed tokens; signed by SessionKey.signer."""

    NAME: ClassVar[str] = "Voucher"
    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bytes32", "sessionId"),
        ("uint128", "cumulative"),
        ("uint64", "tokens"),
        ("bytes32", "receiptsRoot"),
    )
    session_id: bytes
    cumulative: int
    tokens: int
    receipts_root: bytes

    def digest(self, chain_id: int, escrow: str) -> bytes:
        """What SessionEscrow checks."""
        return escrow_domain(chain_id, escrow).digest(self.struct_hash())


Voucher.seal()


_SESSION_FIELDS: tuple[tuple[str, str], ...] = (
    ("client", "address"),
    ("signer", "address"),
    ("model_id", "bytes32"),
    ("nonce", "uint64"),
    ("expiry", "uint40"),
    ("max_price_per_ktok", "uint64"),
)
_SESSION_KEYS = frozenset([name for name, _ in _SESSION_FIELDS] + ["nodes", "shares"])


@dataclass(frozen=True)
class SessionKey:
    """The terms of a payment channel between a client and a route. `shares` in basis points, one a node, sum 10000.

    expiry: unix seconds of the chain; max_price_per_ktok: gwei of EFED for 1000 tokens, whole route. Raises
    ProtocolError("bad-message").
    """

    client: str
    signer: str
    model_id: bytes
    nonce: int
    expiry: int
    max_price_per_ktok: int
    nodes: tuple[str, ...]
    shares: tuple[int, ...]

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "client", as_address(self.client, "client"))
        put(self, "signer", as_address(self.signer, "signer"))
        as_h32(self.model_id, "model_id")
        as_uint(self.nonce, 64, "nonce")
        as_uint(self.expiry, 40, "expiry")
        as_uint(self.max_price_per_ktok, 64, "max_price_per_ktok")
        refuse(
            not isinstance(self.nodes, list | tuple) or not isinstance(self.shares, list | tuple),
            "nodes and shares must be lists.",
        )
        refuse(not 1 <= len(self.nodes) <= MAX_HOPS, f"A route has 1 to {MAX_HOPS} nodes.")
        put(self, "nodes", tuple(as_address(node, "nodes") for node in self.nodes))
        put(self, "shares", tuple(as_uint(share, 16, "shares") for share in self.shares))
        refuse(len(self.shares) != len(self.nodes), "Every node of a route needs one share.")
        refuse(len(set(self.nodes)) != len(self.nodes), "A node stands only once in a route.")
        refuse(sum(self.shares) != BPS, "The shares must add up to 10000 basis points.")

    def abi(self) -> bytes:
        """`abi.encode(key)` without its leading offset: eight head words, then nodes, then shares."""
        head = b"".join([word(kind, getattr(self, name)) for name, kind in _SESSION_FIELDS])
        nodes = word("uint256", len(self.nodes)) + b"".join([word("address", node) for node in self.nodes])
        shares = word("uint256", len(self.shares)) + b"".join([word("uint16", share) for share in self.shares])
        first = 8 * 32
        return head + word("uint256", first) + word("uint256", first + len(nodes)) + nodes + shares

    def session_id(self, chain_id: int, escrow: str) -> bytes:
        """`keccak256(abi.encode(block.chainid, address(escrow), key))`."""
        escrow = as_address(escrow, "escrow")
        return keccak(word("uint256", chain_id) + word("address", escrow) + word("uint256", 3 * 32) + self.abi())

    def to_json(self) -> dict[str, Any]:
        """JSON form: bytes and addresses as 0x hex, integers as numbers."""
        out: dict[str, Any] = {
            name: to_hex(getattr(self, name)) if kind == "bytes32" else getattr(self, name)
            for name, kind in _SESSION_FIELDS
        }
        return {**out, "nodes": list(self.nodes), "shares": list(self.shares)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The key behind `to_json`; ProtocolError("bad-message") on anything else."""
        data = dict(as_object(value, _SESSION_KEYS, "SessionKey"))
        data["model_id"] = parse_hex(data["model_id"], "model_id", 32)
        return cls(**data)

"""The signed messages: what each party promises, and the digest its signature covers.

They live in the domain {EFL, 1, chain, CommitmentLog}; those of the payment channel, in `session`, in the escrow's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain, TypedMessage, as_object, parse_hex, refuse, to_hex
from efedllm.commitments.hashing import ZERO32, as_address, as_h32, as_uint, sha256
from efedllm.commitments.leaves import job_id
from efedllm.commitments.session import BPS, MAX_HOPS, SessionKey, Voucher, escrow_domain
from efedllm.errors import ProtocolError

NO_EOS = 0xFFFFFFFF
PPM = 1_000_000
MAX_ENDPOINT = 256

__all__ = [
    "BPS",
    "MAX_HOPS",
    "NO_EOS",
    "PPM",
    "ZERO32",
    "Domain",
    "Envelope",
    "Hello",
    "HopCommit",
    "JobSpec",
    "RouteHop",
    "SessionKey",
    "SignedCommit",
    "Voucher",
    "escrow_domain",
    "ids_bytes",
    "ids_hash",
]


FLOAT_PROFILE, EXACT_PROFILE, HALF_PROFILE = 0, 1, 2
"""What a HopCommit says about its arithmetic. The last is a way to compute a float model, declared by the node."""


def ids_bytes(ids: npt.ArrayLike) -> bytes:
    """Token ids as little-endian int32. ProtocolError("bad-message") for an id outside [0, 2**31)."""
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    if array.size and (array.min() < 0 or array.max() > 0x7FFFFFFF):
        raise ProtocolError("bad-message", "A token id must be in [0, 2**31).")
    return array.astype("<i4").tobytes()


def ids_hash(ids: npt.ArrayLike) -> bytes:
    """SHA-256 of the little-endian int32 ids: `promptHash` of a prompt, `tokensHash` of emitted tokens."""
    return sha256(ids_bytes(ids))


@dataclass(frozen=True)
class JobSpec(TypedMessage):
    """What the client asks for; signed by SessionKey.signer. temperature_milli 0 is greedy, top_k 0 and top_p_ppm
    1000000 are off. max_new_tokens 0 asks an encoder for the states of the whole text.
    """

    NAME: ClassVar[str] = "JobSpec"
    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bytes32", "sessionId"),
        ("uint64", "jobSeq"),
        ("bytes32", "promptHash"),
        ("uint32", "promptTokens"),
        ("uint32", "maxNewTokens"),
        ("uint32", "temperatureMilli"),
        ("uint32", "topK"),
        ("uint32", "topPPpm"),
        ("bytes32", "seed"),
        ("uint8", "wireDtype"),
        ("uint32", "eosToken"),
    )
    session_id: bytes
    job_seq: int
    prompt_hash: bytes
    prompt_tokens: int
    max_new_tokens: int
    temperature_milli: int
    top_k: int
    top_p_ppm: int
    seed: bytes
    wire_dtype: int
    eos_token: int = NO_EOS

    def _check(self) -> None:
        refuse(self.prompt_tokens < 1, "A prompt must hold at least one token.")
        refuse(not 1 <= self.top_p_ppm <= PPM, "top_p must be above 0 and at most 1 (1000000 ppm).")
        refuse(self.wire_dtype not in (WireDtype.F32, WireDtype.BF16), "The wire dtype must be 1 (f32) or 2 (bf16).")

    @property
    def job_id(self) -> bytes:
        """Identifier of the job this spec describes."""
        return job_id(self.session_id, self.job_seq)

    @property
    def embeds(self) -> bool:
        """Whether the states after the last layer are what is asked for, and no tokens."""
        return self.max_new_tokens == 0

    @property
    def most_positions(self) -> int:
        """Positions the job may process: the last sampled token is never fed."""
        return self.prompt_tokens + max(self.max_new_tokens - 1, 0)

    def digest(self, domain: Domain) -> bytes:
        """What the client's session key signs, and the `spec_hash` of every commit to the job."""
        return domain.digest(self.struct_hash())


JobSpec.seal()


def signed_job_json(key: SessionKey, spec: JobSpec, signature: bytes) -> dict[str, Any]:
    """What a client signed for a job, as every document shows it: {session_key, job_spec, spec_signature}."""
    return {"session_key": key.to_json(), "job_spec": spec.to_json(), "spec_signature": to_hex(signature)}


@dataclass(frozen=True)
class HopCommit(TypedMessage):
    """What a hop says it did for a job: hidden states in, hidden states out; signed by the node's signer. 1 per job
    and hop.

    `spec_hash` = digest of the signed JobSpec that the hop was given, which tells two specs of one job number apart;
    profile 0 float, 1 exact, 2 float computed in bfloat16; `tokens` = positions T of both boundaries; `tokens_hash`
    only on the last hop; `prev_commit` = digest of hop i-1's commit, zero for hop 0; `aux_root` = root over its taps
    (`taps.TapTree`), zero unless exact.
    """

    NAME: ClassVar[str] = "HopCommit"
    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bytes32", "jobId"),
        ("bytes32", "specHash"),
        ("uint16", "hop"),
        ("uint16", "lo"),
        ("uint16", "hi"),
        ("uint8", "profile"),
        ("uint8", "wireDtype"),
        ("uint32", "tokens"),
        ("bytes32", "modelId"),
        ("bytes32", "shardRoot"),
        ("bytes32", "inRoot"),
        ("bytes32", "outRoot"),
        ("bytes32", "tokensHash"),
        ("bytes32", "auxRoot"),
        ("bytes32", "prevCommit"),
        ("uint64", "epoch"),
    )
    job_id: bytes
    spec_hash: bytes
    hop: int
    lo: int
    hi: int
    profile: int
    wire_dtype: int
    tokens: int
    model_id: bytes
    shard_root: bytes
    in_root: bytes
    out_root: bytes
    tokens_hash: bytes
    aux_root: bytes
    prev_commit: bytes
    epoch: int

    def _check(self) -> None:
        refuse(self.lo >= self.hi, "A hop must serve at least one layer.")
        refuse(self.profile > HALF_PROFILE, "The profile must be 0 (float), 1 (exact) or 2 (float in bfloat16).")
        refuse(self.wire_dtype not in (WireDtype.F32, WireDtype.BF16), "The wire dtype must be 1 (f32) or 2 (bf16).")

    def digest(self, domain: Domain) -> bytes:
        """What the node's signer signs, what the next hop repeats as prev_commit and what the hop leaf holds."""
        return domain.digest(self.struct_hash())


HopCommit.seal()


@dataclass(frozen=True)
class Envelope(TypedMessage):
    """Consecutive rows of one boundary; signed by the sender, acknowledged by the receiver's signature over the same
    digest.
    """

    NAME: ClassVar[str] = "Envelope"
    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bytes32", "jobId"),
        ("uint16", "boundary"),
        ("uint32", "fromPos"),
        ("uint32", "n"),
        ("bytes32", "chunkHash"),
        ("bytes32", "prev"),
    )
    job_id: bytes
    boundary: int
    from_pos: int
    n: int
    chunk_hash: bytes
    prev: bytes

    def _check(self) -> None:
        refuse(self.n < 1, "An envelope must hold at least one row.")

    def digest(self, domain: Domain) -> bytes:
        """What both sides sign, and `prev` of the boundary's next envelope."""
        return domain.digest(self.struct_hash())


Envelope.seal()


@dataclass(frozen=True)
class Hello(TypedMessage):
    """A node's signer proves itself to whoever chose `challenge`."""

    NAME: ClassVar[str] = "Hello"
    SOLIDITY: ClassVar[tuple[tuple[str, str], ...]] = (("address", "node"), ("bytes32", "challenge"))
    node: str
    challenge: bytes

    def digest(self, domain: Domain) -> bytes:
        """What the node's signer signs."""
        return domain.digest(self.struct_hash())


Hello.seal()


@dataclass(frozen=True)
class RouteHop:
    """One node of a route as its client sees it. `shard_root` is checked against commits where it is known."""

    node: str
    signer: str
    endpoint: str
    lo: int
    hi: int
    shard_root: bytes | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "node", as_address(self.node, "node"))
        object.__setattr__(self, "signer", as_address(self.signer, "signer"))
        refuse(not isinstance(self.endpoint, str) or len(self.endpoint) > MAX_ENDPOINT, "An endpoint is a short URL.")
        as_uint(self.lo, 16, "lo")
        as_uint(self.hi, 16, "hi")
        refuse(self.lo >= self.hi, "A hop must serve at least one layer.")
        if self.shard_root is not None:
            as_h32(self.shard_root, "shard_root")

    def to_json(self) -> dict[str, Any]:
        """JSON form; `shard_root` only where known."""
        out: dict[str, Any] = {
            "node": self.node,
            "signer": self.signer,
            "endpoint": self.endpoint,
            "lo": self.lo,
            "hi": self.hi,
        }
        if self.shard_root is not None:
            out["shard_root"] = to_hex(self.shard_root)
        return out

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The hop behind `to_json`; ProtocolError("bad-message") on anything else."""
        keys = frozenset({"node", "signer", "endpoint", "lo", "hi"})
        if isinstance(value, dict) and "shard_root" in value:
            data = dict(as_object(value, keys | {"shard_root"}, "RouteHop"))
            data["shard_root"] = parse_hex(data["shard_root"], "shard_root", 32)
            return cls(**data)
        return cls(**as_object(value, keys, "RouteHop"))


@dataclass(frozen=True)
class SignedCommit:
    """A HopCommit with its 65-byte signature (not checked here)."""

    commit: HopCommit
    signature: bytes

    def __post_init__(self) -> None:
        refuse(not isinstance(self.signature, bytes) or len(self.signature) != 65, "A signature must be 65 bytes.")

    def to_json(self) -> dict[str, Any]:
        """{commit, signature}."""
        return {"commit": self.commit.to_json(), "signature": to_hex(self.signature)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The pair behind `to_json`; ProtocolError("bad-message") on anything else."""
        data = as_object(value, frozenset({"commit", "signature"}), "SignedCommit")
        return cls(HopCommit.from_json(data["commit"]), parse_hex(data["signature"], "signature", 65))

"""Canaries in the in-process EVM: real sessions, consents, batches and openings, hashed by efedllm.commitments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from efedllm.commitments import leaves, merkle
from efedllm.commitments.canary import Canary, canary_salt, fault_digest, fingerprint, sample_ppm
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import BPS, HopCommit, SessionKey
from efedllm.commitments.signing import Signer
from efedllm_bench.trust.evm import Network, address_of

ETHER = 10**18
NEVER = 2**40 - 1  # unix seconds
ORDINARY = keccak(b"a leaf that is no canary")


@dataclass(frozen=True)
class Planted:
    """One canary in a posted batch: its hop leaf, and the arguments that open it (see ICanaryRegistry.Opening)."""

    leaf: bytes
    opening: dict[str, Any]


class Planter:
    """A client with a session at every node, which serves all layers of `net`'s model, that plants canaries there."""

    def __init__(self, net: Network, nodes: Sequence[str], layers: int) -> None:
        self._net, self._layers = net, layers
        self._signer = Signer(keccak(b"key of the planter's sessions"))
        self._jobs = 0
        self._batches = dict.fromkeys(nodes, 0)
        self._keys = {node: self._key(node, i) for i, node in enumerate(nodes)}
        client = address_of("planter")
        net.deposit(client, ETHER)
        for key in self._keys.values():
            net.open_session(client, key, 1)

    def plant(self, node: str, epoch: int, count: int, made: int | None = None) -> list[Planted]:
        """Post a batch of `count` canaries and an ordinary leaf in `epoch`, which must be running; `made`: the epoch
        that the commits name, by default the same.
        """
        fresh = [self._commit(node, epoch if made is None else made) for _ in range(count)]
        batch = [item.leaf for item in fresh] + [ORDINARY]
        seq = self._batches[node]
        self._batches[node] += 1
        self._net.post(node, epoch, seq, leaves.batch_root(node, epoch, seq, batch), len(batch))
        return [
            replace(
                item,
                opening={
                    **item.opening,
                    "seq": seq,
                    "count": len(batch),
                    "index": index,
                    "proof": merkle.proof(batch, index),
                },
            )
            for index, item in enumerate(fresh)
        ]

    def _key(self, node: str, nonce: int) -> SessionKey:
        return SessionKey(
            client=address_of("planter"),
            signer=self._signer.address,
            model_id=self._net.model_id,
            nonce=nonce,
            expiry=NEVER,
            max_price_per_ktok=1,
            nodes=(node,),
            shares=(BPS,),
        )

    def _commit(self, node: str, epoch: int) -> Planted:
        key, seq = self._keys[node], self._jobs
        self._jobs += 1
        job = leaves.job_id(key.session_id(*self._net.escrow_domain), seq)
        commit = HopCommit(
            job_id=job,
            spec_hash=keccak(job + b"spec"),
            hop=0,
            lo=0,
            hi=self._layers,
            profile=0,
            wire_dtype=1,
            tokens=7,
            model_id=key.model_id,
            shard_root=keccak(b"shard"),
            in_root=keccak(job + b"in"),
            out_root=keccak(job + b"out"),
            tokens_hash=keccak(job + b"tokens"),
            aux_root=ZERO32,
            prev_commit=ZERO32,
            epoch=epoch,
        )
        domain = self._net.efl_domain
        consent = self._signer.sign(Canary(job, 0).digest(domain))
        nonce = keccak(job + b"nonce")
        leaf = leaves.hop_leaf(commit.digest(domain), canary_salt(job, 0, consent, nonce))
        return Planted(leaf, {"commit": commit, "job_seq": seq, "key": key, "consent": consent, "nonce": nonce})


def audited(planted: Sequence[Planted], seed: bytes, rate_ppm: int) -> list[Planted]:
    """Those that the seed drew, in ascending order of their leaves, as an opening wants them."""
    drawn = [item for item in planted if sample_ppm(seed, item.leaf) < rate_ppm]
    return sorted(drawn, key=lambda item: item.leaf)


def print_of(seed: bytes, found: Sequence[bytes]) -> int:
    """What the contract keeps of the fault digest of a verifier that failed these leaves."""
    return fingerprint(fault_digest(seed, found))

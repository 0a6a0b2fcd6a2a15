"""Two commitments of one node for one job and hop: what DisputeGame slashes for, as data and as a document."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from efedllm.commitments.blame import equivocation
from efedllm.commitments.eip712 import Domain, as_object
from efedllm.commitments.hashing import as_address
from efedllm.commitments.messages import HopCommit, SignedCommit
from efedllm.commitments.signing import recover
from efedllm.errors import ProtocolError

KIND = "equivocation"
_KEYS = frozenset({"kind", "chain_id", "commitment_log", "node", "commits"})


@dataclass(frozen=True)
class Equivocation:
    """Commits of `node` in ascending order of their digests, as the contract takes them. Whether the keys that signed
    them are the node's is for the chain to say; everything else is checked here.

    Raises ProtocolError "no-equivocation" unless both are about one job and hop and differ, "bad-signature" unless both
    signatures are sound.
    """

    domain: Domain
    node: str
    first: SignedCommit
    second: SignedCommit

    def __post_init__(self) -> None:
        object.__setattr__(self, "node", as_address(self.node, "node"))
        a, b = self.first, self.second
        if (a.commit.job_id, a.commit.hop) != (b.commit.job_id, b.commit.hop):
            raise _no_proof("The two commitments are about different jobs or hops.")
        if a.commit == b.commit:
            raise _no_proof("The two commitments are the same one.")
        if b.commit.digest(self.domain) < a.commit.digest(self.domain):
            object.__setattr__(self, "first", b)
            object.__setattr__(self, "second", a)
        for signed in (a, b):
            recover(signed.commit.digest(self.domain), signed.signature)

    @property
    def job_id(self) -> bytes:
        return self.first.commit.job_id

    @property
    def hop(self) -> int:
        return self.first.commit.hop

    @property
    def signers(self) -> tuple[str, str]:
        """The keys that signed the first and the second commitment."""
        first, second = (recover(item.commit.digest(self.domain), item.signature) for item in (self.first, self.second))
        return first, second

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the members in which the two differ."""
        a, b = self.first.commit, self.second.commit
        return tuple(part.name for part in fields(HopCommit) if getattr(a, part.name) != getattr(b, part.name))

    @property
    def name(self) -> str:
        """A file name: one for each case, however many pairs prove it."""
        return f"{KIND}-{self.node[2:].lower()}-{self.job_id.hex()}-{self.hop}.json"

    def to_json(self) -> dict[str, Any]:
        """{kind, chain_id, commitment_log, node, commits: [{commit, signature}, {commit, signature}]}."""
        return {
            "kind": KIND,
            "chain_id": self.domain.chain_id,
            "commitment_log": self.domain.contract,
            "node": self.node,
            "commits": [self.first.to_json(), self.second.to_json()],
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The proof behind `to_json`. ProtocolError "bad-message" on anything else, and as the class says."""
        data = as_object(value, _KEYS, "evidence")
        commits = data["commits"]
        if data["kind"] != KIND or not isinstance(commits, list) or len(commits) != 2:
            raise ProtocolError("bad-message", f"Evidence is of the kind {KIND} and holds two commitments.")
        first, second = map(SignedCommit.from_json, commits)
        return cls(Domain(data["chain_id"], data["commitment_log"]), data["node"], first, second)


def find(domain: Domain, node: str, a: SignedCommit, b: SignedCommit, signers: frozenset[str]) -> Equivocation | None:
    """The proof that two commitments make against `node`, whose keys are `signers`; None when they make none."""
    return None if equivocation(domain, a, b, signers) is None else Equivocation(domain, node, a, b)


def _no_proof(message: str) -> ProtocolError:
    return ProtocolError("no-equivocation", message, "Two different commitments of one node for one job are needed.")

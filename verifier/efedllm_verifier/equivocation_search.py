"""Searches for second commitments: compares an audited leaf with the commitments its neighbours were given.

The search runs after the verdict is settled and does not change it, because a neighbour can answer some verifiers and
not others. Two commitments signed by one node need no verdict: the contract slashes for them alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.equivocation import Equivocation, find
from efedllm.commitments.messages import SignedCommit
from efedllm.commitments.signing import is_signed_by
from efedllm.errors import ProtocolError
from efedllm_verifier.fetch import UnavailableError
from efedllm_verifier.leaf import Leaf, Registration
from efedllm_verifier.node_directory import NodeDirectory, Party

_AT_ONCE = 4  # leaves looked at side by side; each takes up to four small answers


@dataclass(frozen=True)
class AuditedCommit:
    """An audited leaf's commitment, whose signature is its node's, with the parties of its route; None at its ends."""

    signed: SignedCommit
    node: str
    own: Party
    previous: str | None
    before: Party | None
    after: Party | None


def audited_commit(
    leaf: Leaf, registration: Registration, nodes: NodeDirectory, domain: Domain
) -> AuditedCommit | None:
    """The commitment of an audited leaf with the neighbours that its session names; None unless the node signed it."""
    commit, node = leaf.commit, registration.node
    route = () if leaf.terms is None else leaf.terms.key.nodes
    hop = commit.hop
    if hop >= len(route) or route[hop] != node:
        return None
    if not is_signed_by(commit.digest(domain), leaf.signature, registration.signers):
        return None
    previous = route[hop - 1] if hop else None
    return AuditedCommit(
        signed=SignedCommit(commit, leaf.signature),
        node=node,
        own=nodes.party(node),
        previous=previous,
        before=None if previous is None else nodes.party(previous),
        after=nodes.party(route[hop + 1]) if hop + 1 < len(route) else None,
    )


class NeighbourReader(Protocol):
    """What is asked of neighbours; `efedllm_verifier.fetch.NodeReader` does so over HTTP."""

    async def receipt(self, endpoint: str, job_id: bytes, *, once: bool = False) -> dict[str, Any]: ...

    async def previous(self, endpoint: str, job_id: bytes) -> dict[str, Any]: ...


class EquivocationSearch:
    """Asks the neighbours of audited leaves, each once, for what they hold."""

    def __init__(self, reader: NeighbourReader, domain: Domain) -> None:
        self._reader = reader
        self._domain = domain

    async def look(self, commits: Sequence[AuditedCommit]) -> list[Equivocation]:
        """Proofs against the audited node and against those before it; one for each case."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(audited: AuditedCommit) -> list[Equivocation]:
            async with gate:
                return [proof for proof in (await self._of_node(audited), await self._of_previous(audited)) if proof]

        found = self._among(commits)
        for proofs in await asyncio.gather(*map(one, commits)):
            found += proofs
        return list({proof.name: proof for proof in found}.values())

    def _among(self, commits: Sequence[AuditedCommit]) -> list[Equivocation]:
        """Leaves of the node itself that contradict each other."""
        first: dict[tuple[bytes, int], AuditedCommit] = {}
        found = []
        for audited in commits:
            commit = audited.signed.commit
            known = first.setdefault((commit.job_id, commit.hop), audited)
            found.append(find(self._domain, audited.node, known.signed, audited.signed, audited.own.signers))
        return [proof for proof in found if proof is not None]

    async def _of_node(self, audited: AuditedCommit) -> Equivocation | None:
        """The next hop names another commitment of the audited node than the leaf holds, and can show it."""
        after, commit = audited.after, audited.signed.commit
        if after is None:
            return None
        theirs = await self._receipt(after, commit.job_id, commit.hop + 1)
        if theirs is None or theirs.commit.prev_commit == commit.digest(self._domain):
            return None
        return await self._shown(after, audited.node, audited.signed, audited.own.signers)

    async def _of_previous(self, audited: AuditedCommit) -> Equivocation | None:
        """The audited node names another commitment of the hop before than that hop answers with, and can show it."""
        before, previous, commit = audited.before, audited.previous, audited.signed.commit
        if before is None or previous is None or commit.hop == 0:
            return None
        theirs = await self._receipt(before, commit.job_id, commit.hop - 1)
        if theirs is None or commit.prev_commit == theirs.commit.digest(self._domain):
            return None
        return await self._shown(audited.own, previous, theirs, before.signers)

    async def _shown(
        self, holder: Party, node: str, known: SignedCommit, signers: frozenset[str]
    ) -> Equivocation | None:
        """What `known` and the predecessor's commitment that `holder` shows prove against `node`."""
        try:
            shown = SignedCommit.from_json(await self._reader.previous(holder.endpoint, known.commit.job_id))
        except (UnavailableError, ProtocolError):
            return None
        return find(self._domain, node, known, shown, signers)

    async def _receipt(self, party: Party, job_id: bytes, hop: int) -> SignedCommit | None:
        """A party's commitment for its hop of the job; None where it shows no valid one."""
        try:
            signed = SignedCommit.from_json(await self._reader.receipt(party.endpoint, job_id, once=True))
        except (UnavailableError, ProtocolError):
            return None
        fits = (signed.commit.job_id, signed.commit.hop) == (job_id, hop)
        sound = is_signed_by(signed.commit.digest(self._domain), signed.signature, party.signers)
        return signed if fits and sound else None

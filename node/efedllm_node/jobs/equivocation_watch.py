"""Detects two commitments of one node for one job, and keeps the proof."""

from __future__ import annotations

import asyncio

from efedllm.chain.disputes import EvidenceFolder
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.equivocation import find
from efedllm.commitments.messages import SignedCommit
from efedllm.commitments.signing import recover
from efedllm.logs import get_logger


class EquivocationWatch:
    """Compares each commitment of a previous hop with the one that it signed first."""

    def __init__(self, domain: Domain, folder: EvidenceFolder) -> None:
        self._domain = domain
        self._folder = folder
        self._log = get_logger("equivocation_watch")

    async def compare(self, node: str, kept: SignedCommit, shown: SignedCommit) -> bool:
        """Whether the two prove that `node` equivocated; then the proof is on disk. `kept`: a checked commitment."""
        key = recover(kept.commit.digest(self._domain), kept.signature)
        proof = find(self._domain, node, kept, shown, frozenset({key}))
        if proof is None:
            return False
        path = await asyncio.to_thread(self._folder.keep, proof)
        if path is not None:
            self._log.warning(
                "a node signed two commitments for one job",
                node=node,
                job=proof.job_id.hex(),
                evidence=str(path),
                hint="Collect on it: efedllm dispute equivocation --evidence FILE",
            )
        return True

"""Shows proofs of equivocation to the contract. The next step of a proof is a pure function, safe to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from efedllm.chain.amounts import format_amount
from efedllm.chain.client import Chain
from efedllm.chain.disputes import EvidenceFolder, prove, read_proof
from efedllm.chain.reverts import RevertError
from efedllm.commitments.equivocation import Equivocation
from efedllm.errors import EfedError
from efedllm_verifier.equivocation_search import AuditedCommit, EquivocationSearch
from efedllm_verifier.metrics import VerifierMetrics


@dataclass(frozen=True)
class ProofStatus:
    """State of a proof on chain. ours: it is of this network. theirs: its keys are the node's. stake: wei, active and
    unbonding.
    """

    ours: bool
    theirs: bool = False
    proven: bool = False
    stake: int = 0


class CaseStep(Enum):
    PROVE = "prove"
    SETTLE = "settle"  # nothing more can come of it
    WAIT = "wait"  # until the next epoch


def next_step(status: ProofStatus) -> CaseStep:
    """What to do with a proof."""
    if not status.ours:
        return CaseStep.WAIT
    if status.proven or not status.theirs:
        return CaseStep.SETTLE
    return CaseStep.PROVE if status.stake else CaseStep.WAIT


class Prosecutor:
    """Stores proofs of equivocation found after audits and sends them to the contract. `log` is a structlog logger."""

    def __init__(
        self, chain: Chain, search: EquivocationSearch, folder: EvidenceFolder, metrics: VerifierMetrics, log: Any
    ) -> None:
        self._chain = chain
        self._search = search
        self._folder = folder
        self._metrics = metrics
        self._log = log
        self._waiting: dict[str, int] = {}  # file name -> epoch in which nothing more is tried

    async def investigate(self, commits: Sequence[AuditedCommit]) -> None:
        """Look for second commitments of audited leaves; what is found is on disk when this returns."""
        for proof in await self._search.look(commits):
            try:
                path = await asyncio.to_thread(self._folder.keep, proof)
            except OSError as error:
                self._log.error("evidence not kept", node=proof.node, reason=str(error))
                continue
            if path is not None:
                self._log.warning("two commitments for one job", node=proof.node, hop=proof.hop, evidence=str(path))

    async def tick(self, epoch: int) -> None:
        """Do what is due about every open case. A case that cannot go on now is looked at again in the next epoch."""
        for path in await asyncio.to_thread(self._folder.open):
            if self._waiting.get(path.name) == epoch:
                continue
            self._waiting[path.name] = epoch
            try:
                await self._pursue(path)
            except EfedError as error:
                self._metrics.transactions.labels("Prove", "refused").inc()
                self._log.error("case put off", evidence=str(path), code=error.code, reason=str(error))

    async def _pursue(self, path: Path) -> None:
        proof = await asyncio.to_thread(read_proof, path)
        step = next_step(await self._status(proof))
        if step is CaseStep.PROVE:
            try:
                await self._prove(proof)
            except RevertError as error:
                # Somebody else was first.
                if error.name != "AlreadyProven":
                    raise
        if step is not CaseStep.WAIT:
            await asyncio.to_thread(self._folder.settle, path)
            self._waiting.pop(path.name, None)

    async def _status(self, proof: Equivocation) -> ProofStatus:
        if proof.domain != self._chain.efl_domain:
            return ProofStatus(ours=False)
        contracts, node = self._chain.contracts, proof.node
        proven, stake, known = await asyncio.gather(
            contracts.dispute_game.is_proven(node, proof.job_id, proof.hop),
            contracts.stake_vault.stake_of(node),
            asyncio.gather(*(contracts.node_registry.is_signer(node, key) for key in proof.signers)),
        )
        return ProofStatus(True, all(known), proven, stake.active + stake.unbonding)

    async def _prove(self, proof: Equivocation) -> None:
        result = await prove(self._chain, proof)
        event = result.event("EquivocationProven").args
        self._metrics.transactions.labels("Prove", "done").inc()
        self._log.info(
            "equivocation proven",
            node=proof.node,
            slashed=format_amount(int(event["slashed"])),
            reward=format_amount(int(event["reward"])),
            tx=result.hash,
            gas=result.gas_used,
        )

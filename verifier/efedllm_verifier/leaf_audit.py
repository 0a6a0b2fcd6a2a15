"""Auditing one leaf: fetch both boundaries of its hop by root, recompute the hop, check it against its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from efedllm.chain.client import Chain
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, as_dtype, itemsize
from efedllm.commitments.messages import HopCommit
from efedllm.engine.protocol import Executor
from efedllm_verifier.engine_cache import EngineCache
from efedllm_verifier.fetch import NodeReader, UnavailableError
from efedllm_verifier.leaf import JobTerms, Leaf, LeafFault, Registration, check_leaf
from efedllm_verifier.neighbour_checks import check_inputs, check_outputs
from efedllm_verifier.node_directory import NodeDirectory, Party
from efedllm_verifier.rerun import HopResult, rerun
from efedllm_verifier.statistic import DeviationLimits


class LeafAudit:
    """Audits leaves of one node's batch of one epoch.

    registration: the node's, in the block of the batch. executor: an engine of `engines` for exactly its layers.
    """

    def __init__(
        self,
        chain: Chain,
        reader: NodeReader,
        engines: EngineCache,
        nodes: NodeDirectory,
        registration: Registration,
        executor: Executor,
        limits: DeviationLimits,
        epoch: int,
    ) -> None:
        self._chain = chain
        self._reader = reader
        self._engines = engines
        self._nodes = nodes
        self._registration = registration
        self._executor = executor
        self._limits = limits
        self._epoch = epoch
        self._in_escrow: dict[bytes, bool] = {}  # session id -> whether it was ever opened; grows with the leaves

    async def check(self, leaf: Leaf) -> HopResult:
        """Every check of one leaf; the first fault found ends it.

        Raises BackendError when our own side fails, ChainError when the chain cannot be read.
        """
        chain = self._chain
        fault = check_leaf(leaf, self._epoch, self._registration, chain.efl_domain, chain.escrow_domain)
        if fault is not None:
            return HopResult(None, fault)
        assert leaf.terms is not None
        if not await self._is_in_escrow(leaf.terms.spec.session_id):
            return HopResult(None, LeafFault("unknown-session", "no escrow session pays for this job"))
        if leaf.commit.tokens > self._executor.max_positions:
            # Before anything is fetched: the committed number bounds what a source may send us.
            detail = f"{leaf.commit.tokens} positions exceed the model's context"
            return HopResult(None, LeafFault("context-exceeded", detail))
        return await self._recompute(leaf, leaf.terms)

    async def _is_in_escrow(self, session_id: bytes) -> bool:
        if session_id not in self._in_escrow:
            self._in_escrow[session_id] = (await self._chain.session(session_id)).status != 0
        return self._in_escrow[session_id]

    async def _recompute(self, leaf: Leaf, terms: JobTerms) -> HopResult:
        """Fetch both boundaries, run the hop, check it against its neighbours."""
        commit, nodes = leaf.commit, terms.key.nodes
        first, last = commit.hop == 0, commit.hop == len(nodes) - 1
        own = self._nodes.party(nodes[commit.hop])
        # Boundary 0 is the prompt and what the last hop sent back.
        before = None if len(nodes) == 1 else self._nodes.party(nodes[commit.hop - 1])
        after = None if last else self._nodes.party(nodes[commit.hop + 1])
        wire, hidden = as_dtype(commit.wire_dtype), self._registration.hidden
        dtype, dim = (WireDtype.I32, 1) if first else (wire, hidden)
        try:
            inputs = await self._boundary(commit, commit.hop, dtype, dim, [own, before])
            outputs = await self._boundary(commit, commit.hop + 1, wire, hidden, [own, after])
        except UnavailableError as error:
            return HopResult(None, LeafFault("withheld", str(error)))
        result = await self._engines.run(
            partial(rerun, self._executor, leaf, terms.spec, inputs, outputs, limits=self._limits)
        )
        fault, domain = result.fault, self._chain.efl_domain
        if fault is None and before is not None:
            tree = BoundaryTree(commit.job_id, commit.hop, dtype, dim)
            tree.append(inputs)
            start = min(terms.spec.prompt_tokens, tree.length) if first else 0
            if start < tree.length:
                fault = await check_inputs(self._reader, domain, commit, tree.leaves, start, own, before)
        if fault is None and after is not None:
            fault = await check_outputs(self._reader, domain, commit, own, after)
        return replace(result, fault=fault, bytes_fetched=len(inputs) + len(outputs))

    async def _boundary(
        self, commit: HopCommit, boundary: int, dtype: WireDtype, dim: int, holders: Sequence[Party | None]
    ) -> bytes:
        """The bytes under the committed root of `boundary`, from the first of `holders` that has them."""
        root = commit.in_root if boundary == commit.hop else commit.out_root
        size = commit.tokens * dim * itemsize(dtype)
        accept = partial(hashes_to, commit.job_id, boundary, dtype, dim, root)
        return await self._reader.boundary([party.endpoint for party in holders if party], root, size, accept)


def hashes_to(job_id: bytes, boundary: int, dtype: WireDtype, dim: int, root: bytes, payload: bytes) -> bool:
    """Whether `payload` hashes to the boundary root. `rerun` checks whether the bytes are canonical."""
    tree = BoundaryTree(job_id, boundary, dtype, dim)
    tree.append(payload)
    return tree.root() == root

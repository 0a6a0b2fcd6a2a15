"""What all jobs of a node share."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.signing import Signer
from efedllm_node.chain_clock import ChainClock
from efedllm_node.compute.batcher import Batcher
from efedllm_node.compute.trace_files import Traces
from efedllm_node.config import NodeLimits
from efedllm_node.facts import NodeFacts
from efedllm_node.jobs.equivocation_watch import EquivocationWatch
from efedllm_node.metrics import NodeMetrics
from efedllm_node.payments.sessions import ServedSessions
from efedllm_node.storage.store import NodeStore


@dataclass(frozen=True)
class NodeServices:
    """`credit`: tokens a session may be ahead of its vouchers; `endpoint`: URL that the registry has to name."""

    facts: NodeFacts
    domain: Domain
    signer: Signer
    store: NodeStore
    traces: Traces
    batcher: Batcher
    sessions: ServedSessions
    clock: ChainClock
    limits: NodeLimits
    credit: int
    metrics: NodeMetrics
    endpoint: str
    equivocation_watch: EquivocationWatch

"""Which jobs a node admits, as pure functions that raise ProtocolError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efedllm.chain.types import ChainTime, NodeInfo
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.messages import RouteHop, ids_hash
from efedllm.commitments.signing import check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import OpenJobMsg
from efedllm_node.facts import NodeFacts

ACTIVE = 1


@dataclass(frozen=True)
class Load:
    """How busy the node is."""

    jobs: int
    session_jobs: int
    max_jobs: int
    max_session_jobs: int
    draining: bool


def check_open(
    msg: OpenJobMsg, session_id: bytes, facts: NodeFacts, domain: Domain, time: ChainTime, load: Load
) -> None:
    """Everything about OPEN_JOB that needs neither the chain nor the disk. `session_id`: hash of the session key."""
    key, spec = msg.session_key, msg.job_spec
    if load.draining:
        raise ProtocolError("draining", "This node is shutting down.", "Choose another node.")
    if spec.session_id != session_id:
        raise ProtocolError(
            "wrong-session", "The job names another session than its key.", "Sign the job for the session you open."
        )
    if key.model_id != facts.model_id:
        raise ProtocolError("wrong-model", "This node serves another model.", "See `efedllm network`.")
    if msg.hop >= len(key.nodes) or key.nodes[msg.hop] != facts.address:
        raise ProtocolError("wrong-route", f"Node {facts.address} is not hop {msg.hop} of the session.")
    if (msg.hop == 0, msg.hop == len(key.nodes) - 1) != (facts.lo == 0, facts.hi == facts.layers):
        raise ProtocolError("wrong-route", f"Layers {facts.lo}:{facts.hi} cannot be hop {msg.hop} of {len(key.nodes)}.")
    if key.expiry <= time.timestamp:
        raise ProtocolError(
            "session-expired",
            f"The session expired {time.timestamp - key.expiry} s ago.",
            "Open a new session.",
        )
    check(spec.digest(domain), msg.spec_signature, key.signer)
    _check_size(msg, facts)
    if load.jobs >= load.max_jobs:
        raise ProtocolError("busy", f"This node runs {load.jobs} jobs already.", "Try again, or choose another node.")
    if load.session_jobs >= load.max_session_jobs:
        raise ProtocolError("busy", f"The session runs {load.session_jobs} jobs already.", "Wait for one of them.")


def _check_size(msg: OpenJobMsg, facts: NodeFacts) -> None:
    spec = msg.job_spec
    if spec.embeds != facts.encoder:
        wanted = "an encoder, which generates no tokens" if facts.encoder else "not an encoder"
        raise ProtocolError(
            "wrong-task", f"The model of this node is {wanted}.", "Use `efedllm embed` with encoders, only."
        )
    if facts.exact and spec.wire_dtype != WireDtype.F32:
        raise ProtocolError(
            "wrong-wire",
            "The model of this node is exact: its rows cannot be rounded on the wire.",
            "Ask for f32 between the nodes.",
        )
    if spec.most_positions > facts.max_positions:
        raise ProtocolError(
            "context-exceeded",
            f"The job may need {spec.most_positions} positions, this node serves {facts.max_positions}.",
            "Use a shorter prompt or ask for fewer tokens.",
        )
    if msg.prompt is not None:
        if ids_hash(msg.prompt) != spec.prompt_hash:
            raise ProtocolError("wrong-prompt", "The prompt does not hash to the job's promptHash.")
        if max(msg.prompt) >= facts.vocab:
            raise ProtocolError("bad-token", f"Token ids must be below {facts.vocab}.", "Use the model's tokenizer.")


def check_own(own: NodeInfo, signer: str, endpoint: str) -> None:
    """Whether the registry means this process. Two processes of one account could sign two commitments for one job."""
    if (own.signer, own.endpoint) != (signer, endpoint):
        raise ProtocolError(
            "replaced",
            f"Node {own.address} is registered with another key or endpoint than this process has.",
            "Choose another node.",
        )


def check_route(msg: OpenJobMsg, nodes: Sequence[NodeInfo]) -> tuple[RouteHop, ...]:
    """The route as the chain knows it (its endpoints and signers, not the client's), if the client's agrees."""
    if len(msg.route) != len(msg.session_key.nodes):
        raise ProtocolError("wrong-route", "The route and the session have different lengths.")
    hops = []
    for index, (theirs, info) in enumerate(zip(msg.route, nodes, strict=True)):
        if info.status != ACTIVE:
            raise ProtocolError("wrong-route", f"Node {info.address} is not active.", "Choose another route.")
        known = (info.address, info.signer, info.lo, info.hi)
        if (theirs.node, theirs.signer, theirs.lo, theirs.hi) != known or info.model_id != msg.session_key.model_id:
            raise ProtocolError(
                "wrong-route",
                f"Hop {index} differs from the registration of {info.address}.",
                "Read the registry again: see `efedllm network`.",
            )
        hops.append(RouteHop(info.address, info.signer, info.endpoint, info.lo, info.hi, info.shard_root))
    return tuple(hops)

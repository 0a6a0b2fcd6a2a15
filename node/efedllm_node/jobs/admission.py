"""What a node accepts, as pure functions: jobs, rows of a boundary, commitments. All raise ProtocolError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efedllm.chain.types import ChainTime, NodeInfo
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import EXACT_PROFILE, HopCommit, RouteHop, SignedCommit, ids_hash
from efedllm.commitments.signing import check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import ActMsg, OpenJobMsg

ACTIVE = 1


@dataclass(frozen=True)
class NodeFacts:
    """What this node serves. `max_positions`: the smaller of the model's and the operator's limit. `encoder`: texts go
    through whole, and no tokens come out. `profile`: as in HopCommit, 0 float, 1 exact, 2 float in bfloat16."""

    address: str
    model_id: bytes
    lo: int
    hi: int
    layers: int
    hidden: int
    vocab: int
    shard_root: bytes
    max_positions: int
    encoder: bool = False
    profile: int = 0

    @property
    def exact(self) -> bool:
        return self.profile == EXACT_PROFILE


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


@dataclass(frozen=True)
class Expected:
    """The next rows a boundary takes. `end`: no position from here on; `single_from`: from here one row at a time."""

    boundary: int
    position: int
    prev: bytes
    dtype: WireDtype
    dim: int
    end: int
    single_from: int


def check_act(msg: ActMsg, expected: Expected) -> None:
    """Whether these are the next rows: "out-of-order", "broken-chain", "bad-shape" or "too-long"."""
    if msg.boundary != expected.boundary or msg.from_pos != expected.position:
        raise ProtocolError(
            "out-of-order",
            f"Expected boundary {expected.boundary} from position {expected.position}, "
            f"got boundary {msg.boundary} from {msg.from_pos}.",
        )
    if msg.prev != expected.prev:
        raise ProtocolError("broken-chain", f"The envelope at position {msg.from_pos} does not follow the one before.")
    if msg.dtype is not expected.dtype or msg.dim != expected.dim:
        raise ProtocolError("bad-shape", f"Expected rows of {expected.dim} {expected.dtype.name}.")
    last = msg.from_pos + msg.n
    if last > expected.end:
        raise ProtocolError("too-long", f"Position {last - 1} is beyond what this job may have at this point.")
    if last > expected.single_from and msg.n > 1:
        raise ProtocolError("too-long", "Generated positions come one at a time.")


@dataclass(frozen=True)
class OwnHop:
    """What a hop knows of a job when it commits. `spec_hash`: digest of the signed spec it was opened with; `tokens`:
    positions; `emitted`: on the last hop only."""

    job_id: bytes
    spec_hash: bytes
    hop: int
    lo: int
    hi: int
    wire_dtype: int
    model_id: bytes
    shard_root: bytes
    tokens: int
    in_root: bytes
    out_root: bytes
    emitted: tuple[int, ...] | None
    profile: int = 0
    aux_root: bytes = ZERO32


def check_previous(signed: SignedCommit, own: OwnHop, prev: RouteHop, domain: Domain) -> None:
    """Whether the previous hop's commitment fits what we received from it: "bad-signature" or "commit-mismatch"."""
    check(signed.commit.digest(domain), signed.signature, prev.signer)
    commit = signed.commit
    wanted = (
        own.job_id,
        own.spec_hash,
        own.hop - 1,
        prev.lo,
        prev.hi,
        own.wire_dtype,
        own.tokens,
        own.model_id,
        own.in_root,
        own.profile == EXACT_PROFILE,
    )
    got = (
        commit.job_id,
        commit.spec_hash,
        commit.hop,
        commit.lo,
        commit.hi,
        commit.wire_dtype,
        commit.tokens,
        commit.model_id,
        commit.out_root,
        # Neighbours may compute a float model in different dtypes.
        commit.profile == EXACT_PROFILE,
    )
    names = ("job", "spec", "hop", "lo", "hi", "wire dtype", "positions", "model", "output root", "profile")
    wrong = [name for name, a, b in zip(names, wanted, got, strict=True) if a != b]
    if prev.shard_root is not None and commit.shard_root != prev.shard_root:
        wrong.append("shard")
    if wrong:
        raise ProtocolError("commit-mismatch", f"The commitment of hop {own.hop - 1} has another {', '.join(wrong)}.")


def make_commit(own: OwnHop, prev_commit: bytes, epoch: int) -> HopCommit:
    """Our commitment."""
    return HopCommit(
        job_id=own.job_id,
        spec_hash=own.spec_hash,
        hop=own.hop,
        lo=own.lo,
        hi=own.hi,
        profile=own.profile,
        wire_dtype=own.wire_dtype,
        tokens=own.tokens,
        model_id=own.model_id,
        shard_root=own.shard_root,
        in_root=own.in_root,
        out_root=own.out_root,
        tokens_hash=ZERO32 if own.emitted is None else ids_hash(list(own.emitted)),
        aux_root=own.aux_root,
        prev_commit=prev_commit,
        epoch=epoch,
    )


def ended(token: int, generated: int, max_new: int, eos: int) -> str | None:
    """Why generation stops after `token`, the `generated`-th; None when it goes on."""
    if token == eos:
        return "eos"
    return "length" if generated >= max_new else None


def job_exists() -> ProtocolError:
    """A job number is used once."""
    return ProtocolError("job-exists", "This job number of the session was used before.", "Use the next one.")

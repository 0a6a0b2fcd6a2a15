"""What an audit costs beside the decoding that it checks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.attacks.lab import RANGES, Job, Lab, Progress, decoded, prefilled
from deploy.profile import Profile as NetworkProfile
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.compression import CompressOptions, compress
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor
from efedllm.engine.shard import ShardEngine
from efedllm.sampling import SamplingSpec

# Trust at which an honest node stands after a while, and the audit rate that follows (verification design, 5.2).
SETTLED_TRUST = 0.94
TARGET_RATIO = 0.10
TARGET_LOAD = 0.03


@dataclass(frozen=True)
class Cost:
    """Seconds of one hop of one job, the fastest of the turns; `ratio` is the median over the turns."""

    what: str
    positions: int
    decode_seconds: float
    audit_seconds: float
    ratio: float
    bytes_fetched: int


def measure(lab: Lab, job: Job, turns: int) -> list[Cost]:
    """Every hop of a real job: decoding it (the last hop samples too) against the whole audit of its leaf but for the
    network: both trees, signatures, prefill, comparison, tokens."""
    found = []
    for hop in range(len(RANGES)):
        leaf = lab.leaf(job, hop)
        found.append(
            race(
                f"pylib-7m layers {RANGES[hop][0]}:{RANGES[hop][1]}",
                job.positions,
                lambda hop=hop: _decode(lab, job, hop),  # type: ignore[misc]
                lambda hop=hop, leaf=leaf: _audit(lab, job, hop, leaf),  # type: ignore[misc]
                turns,
                len(job.boundaries[hop]) + len(job.boundaries[hop + 1]),
            )
        )
    return found


def _decode(lab: Lab, job: Job, hop: int) -> None:
    rows = decoded(lab.engines[hop], lab.inputs(job, hop), len(job.prompt))
    if hop < len(RANGES) - 1:
        return
    spec = SamplingSpec.from_job(job.spec)
    first = len(job.prompt) - 1
    for i in range(len(job.emitted)):
        row = np.ascontiguousarray(rows[first + i : first + i + 1])
        lab.choose(lab.engines[hop], row, spec, len(job.prompt) + i)


def _audit(lab: Lab, job: Job, hop: int, leaf: Any) -> None:
    for boundary in (hop, hop + 1):
        dtype, dim = (WireDtype.I32, 1) if boundary == 0 else (job.wire, lab.hidden)
        tree = BoundaryTree(job.spec.job_id, boundary, dtype, dim)
        tree.append(job.boundaries[boundary])
        tree.root()
    assert lab.judge(job, hop, leaf).fault is None


def race(
    what: str, positions: int, decode: Callable[[], None], audit: Callable[[], None], turns: int, fetched: int
) -> Cost:
    """Both in turns."""
    decoding: list[float] = []
    auditing: list[float] = []
    for _ in range(turns):
        for work, seconds in ((decode, decoding), (audit, auditing)):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    ratio = statistics.median(a / d for a, d in zip(auditing, decoding, strict=True))
    return Cost(what, positions, round(min(decoding), 5), round(min(auditing), 5), round(ratio, 4), fetched)


def larger(work: Path, turns: int, *, hidden: int, positions: int) -> list[Cost]:
    """One hop of four layers of a random model, where fixed costs weigh less. Both profiles.

    Decoding against hashing both boundaries and one prefill; comparing bytes is part of hashing them.
    """
    found = []
    source = _random_checkpoint(work / f"random-{hidden}", hidden)
    for profile in ("exact", "float"):
        engine = _published(source, work / f"random-{hidden}-{profile}", profile)
        generator = np.random.default_rng(5)
        x = generator.standard_normal((positions, hidden)).astype(np.float32)
        rows = prefilled(engine, x)

        def audit(engine: Executor = engine, x: Any = x, rows: Any = rows) -> None:
            for boundary in (x, rows):
                tree = BoundaryTree(bytes(32), 1, WireDtype.F32, hidden)
                tree.append(boundary.tobytes())
                tree.root()
            prefilled(engine, x)

        def decode(engine: Executor = engine, x: Any = x) -> None:
            decoded(engine, x, positions // 3)

        what = f"random, 4 layers of width {hidden}, {profile}"
        found.append(race(what, positions, decode, audit, turns, x.nbytes + rows.nbytes))
    return found


def _random_checkpoint(out: Path, hidden: int) -> Path:
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=int(2.75 * hidden) // 64 * 64,
        num_hidden_layers=5,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(out)
    return out


def _published(source: Path, out: Path, profile: str) -> Executor:
    """Layers 1 to 5 of the random model as int8 rows."""
    compress(CompressOptions(str(source), out, method="int8", quant="int8"))
    kind = ExactShardEngine if profile == "exact" else ShardEngine
    return kind.load(out, 1, 5, threads=1)


@dataclass(frozen=True)
class Load:
    """The share of the network's compute that goes into audits, for one network profile."""

    network: str
    committee: int
    rate: float
    ratio: float
    share: float


def load(network: str, ratio: float) -> Load:
    """rate * committee * ratio: every drawn verifier repeats a sampled hop in one prefill."""
    committee = NetworkProfile.load(network).committee
    low, high = committee.p_min / 1e6, committee.p_max / 1e6
    rate = low + (high - low) * (1 - SETTLED_TRUST)
    return Load(
        network, committee.committee_size, round(rate, 4), ratio, round(rate * committee.committee_size * ratio, 4)
    )


def report(lab: Lab, job: Job, work: Path, *, quick: bool, say: Progress) -> dict[str, Any]:
    """All of it as JSON."""
    turns = 3 if quick else 7
    say(f"{lab.profile}: cost of an audit")
    hops = measure(lab, job, turns)
    ratio = sum(c.audit_seconds for c in hops) / sum(c.decode_seconds for c in hops)
    result: dict[str, Any] = {
        "hops": [asdict(c) for c in hops],
        "route_ratio": round(ratio, 4),
        "load": [asdict(load(name, ratio)) for name in ("testnet", "production")],
        "target_ratio": TARGET_RATIO,
        "target_load": TARGET_LOAD,
    }
    if lab.profile == "exact":
        say("cost of an audit of larger random models")
        widths = (512,) if quick else (1024, 2048)
        found = [cost for width in widths for cost in larger(work, 2, hidden=width, positions=192)]
        result["larger"] = [asdict(cost) for cost in found]
    return result

"""The processor time of an audit, relative to the decoding that it checks, on one thread.

There are two ratios. "compute": one prefill with its comparison (on the last hop also of every token), over the
decoding of the layers (on the last hop with sampling). "whole": everything that a verifier does with a fetched leaf,
over everything that the hop does for it, with trees, signatures and acknowledgements. Neither counts sockets, disk or
chain.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.kernels.native import library
from efedllm.models.manifest import Manifest
from efedllm_bench.attacks.lab import RANGES, Lab, LabJob, Progress
from efedllm_bench.attacks.lies.served_again import LeafAudit, ServedHop, stepped
from efedllm_bench.attacks.prefill_parts import prefill_parts
from efedllm_bench.memory.synthetic import Form, LlamaShape, publish_synthetic
from efedllm_bench.speed.timing import timed
from efedllm_bench.trust.dilemma import steady_rate
from efedllm_bench.trust.rule import Rule
from efedllm_deploy.profile import Profile as NetworkProfile
from efedllm_verifier.rerun import check_tokens
from efedllm_verifier.statistic import compare_exact

# Full jobs of a node in an epoch, as in the simulations of trust: they settle its trust, and that its audit rate.
JOBS = 24
TARGET_RATIO = 0.10
TARGET_LOAD = 0.03
LAYERS = 4
POSITIONS, PROMPT = 192, 64
_SPIN = 200_000
_READ = 256 << 20

FORMS: tuple[tuple[str, Form], ...] = (("int8", "int8"), ("int4 with factors of rank 64", "int4+rank"))
"""Of the larger models; the second is close to what `auto` publishes, 4.6 bits a weight."""


@dataclass(frozen=True)
class Race:
    """Two pieces of work in alternating turns: the fastest seconds of each, and the median ratio of the turns."""

    decode_seconds: float
    audit_seconds: float
    ratio: float


@dataclass(frozen=True)
class Bound:
    """`peak_gmacs`: 10^9 products of int16 by int8 per second in registers alone; `read_gbps`: a plain read, round and
    round, of as many bytes as the weights.

    `least`: products at the peak and nothing else, of the decoding as measured: no audit by such products costs less.
    `at_limits`: the same where decoding too is as fast as its weights are read, or its products made.
    """

    peak_gmacs: float
    read_gbps: float
    least: float
    at_limits: float


@dataclass(frozen=True)
class Cost:
    """`compute` and `whole` as the module says; `parts`: seconds of one audit by what they go into."""

    what: str
    positions: int
    decoded: int
    compute: Race
    whole: Race | None
    bound: Bound | None
    parts: dict[str, float]
    bytes_fetched: int


def race(decode: Callable[[], object], audit: Callable[[], object], turns: int) -> Race:
    """Both in turns."""
    pairs = [(timed(decode), timed(audit)) for _ in range(turns)]
    ratio = statistics.median(audited / decoded for decoded, audited in pairs)
    return Race(round(min(d for d, _ in pairs), 5), round(min(a for _, a in pairs), 5), round(ratio, 4))


def fastest(call: Callable[[], object], turns: int) -> float:
    return min(timed(call) for _ in range(turns))


def measure(lab: Lab, job: LabJob, turns: int) -> list[Cost]:
    """Every hop of a real job."""
    found = []
    for hop, (lo, hi) in enumerate(RANGES):
        served = ServedHop(lab, job, hop)
        audit = LeafAudit.of(lab, job, hop, served.serve())
        audit.whole()
        engine = lab.engines[hop]
        compute = race(served.compute, audit.compute, turns)
        found.append(
            Cost(
                what=f"pylib-7m layers {lo}:{hi}",
                positions=job.positions,
                decoded=job.positions - len(job.prompt),
                compute=compute,
                whole=race(served.serve, audit.whole, turns),
                bound=_bound(engine, lab.manifest, job.positions, len(job.prompt), compute.decode_seconds),
                parts=_parts(audit, engine, 3 * turns),
                bytes_fetched=len(job.boundaries[hop]) + len(job.boundaries[hop + 1]),
            )
        )
    return found


def _parts(audit: LeafAudit, engine: Executor, turns: int) -> dict[str, float]:
    job, hop = audit.job, audit.hop
    inputs, hidden = audit.lab.inputs(job, hop), audit.lab.outputs(job, hop)
    if isinstance(engine, ExactShardEngine):
        parts = prefill_parts(engine, inputs, turns)
        parts["comparing bytes"] = fastest(partial(compare_exact, job.boundaries[hop + 1], hidden), turns)
    else:
        parts = {"prefill": fastest(lambda: engine.step([StepItem(engine.new_sequence(), inputs)]), turns)}
    parts["hashing both boundaries"] = fastest(audit.trees, turns)
    parts["signatures, envelopes"] = fastest(audit.signed, turns)
    if engine.has_head:
        exact = isinstance(engine, ExactShardEngine)
        tokens = fastest(lambda: check_tokens(engine, hidden, job.spec, job.emitted, exact=exact), turns)
        first = len(job.prompt) - 1
        logits = fastest(lambda: engine.logits(hidden[first : first + len(job.emitted)]), turns)
        parts |= {"logits": logits, "sampling again": max(tokens - logits, 0.0)}
    return {name: round(seconds, 6) for name, seconds in parts.items()}


def _bound(engine: Executor, manifest: Manifest, positions: int, prompt: int, decoding: float) -> Bound | None:
    """`decoding`: seconds, as measured."""
    native = library()
    if native is None or not isinstance(engine, ExactShardEngine):
        return None
    variant = native.variants[0]
    products = native.peak(variant, _SPIN)
    if not products:
        return None
    peak = products / fastest(partial(native.peak, variant, _SPIN), 9)
    size = engine.weight_bytes
    weights = torch.zeros(size // 8, dtype=torch.int64)
    rounds = max(1, _READ // size)
    read = rounds * size / fastest(lambda: [weights.sum() for _ in range(rounds)], 5)
    multiplied = _products(manifest, engine.lo, engine.hi)
    together, alone = multiplied / peak, max(size / read, multiplied / peak)
    limits = positions * together / (prompt * together + (positions - prompt) * alone)
    least = positions * together / decoding
    return Bound(round(peak / 1e9, 1), round(read / 1e9, 2), round(least, 4), round(limits, 4))


def _products(manifest: Manifest, lo: int, hi: int) -> int:
    """Products of one position in the matrices of layers [lo, hi)."""
    found = 0
    for t in manifest.tensors_for(lo, hi):
        if t.cols > 1 and lo <= t.layer < hi:
            found += (0 if t.form == "lowrank" else t.rows * t.cols) + t.rank * (t.rows + t.cols)
    return found


def larger(work: Path, turns: int, width: int, say: Progress) -> list[Cost]:
    """One hop of four layers of a random model in the forms that are published, and its int8 form in floats."""
    found = []
    shape = LlamaShape(width, int(2.75 * width) // 64 * 64, LAYERS + 1, width // 64, max(1, width // 256), 512)
    x = np.random.default_rng(5).standard_normal((POSITIONS, width)).astype(np.float32)
    for name, form in FORMS:
        path = work / f"random-{width}-{form}"
        manifest = publish_synthetic(path, shape, form)
        for kind, profile in ((ExactShardEngine, "exact"), (ShardEngine, "float")):
            if profile == "float" and form != "int8":
                continue
            what = f"random, {LAYERS} layers of width {width}, {name}, {profile}"
            say(f"cost of an audit: {what}")
            engine: Executor = kind.load(path, 1, LAYERS + 1, threads=1)

            def decode(engine: Executor = engine) -> None:
                sequence = engine.new_sequence()
                stepped(engine, sequence, x[:PROMPT])
                for at in range(PROMPT, POSITIONS):
                    stepped(engine, sequence, x[at : at + 1])

            def audit(engine: Executor = engine) -> None:
                stepped(engine, engine.new_sequence(), x)

            compute = race(decode, audit, turns)
            parts = prefill_parts(engine, x, turns) if isinstance(engine, ExactShardEngine) else {}
            found.append(
                Cost(
                    what=what,
                    positions=POSITIONS,
                    decoded=POSITIONS - PROMPT,
                    compute=compute,
                    whole=None,
                    bound=_bound(engine, manifest, POSITIONS, PROMPT, compute.decode_seconds),
                    parts={part: round(seconds, 6) for part, seconds in parts.items()},
                    bytes_fetched=2 * x.nbytes,
                )
            )
    return found


@dataclass(frozen=True)
class AuditLoad:
    """The share of the network's compute that goes into audits, for one network profile."""

    network: str
    committee: int
    rate: float
    ratio: float
    share: float


def load(network: str, ratio: float) -> AuditLoad:
    """rate * committee * ratio: every drawn verifier repeats a sampled hop in one prefill."""
    rule = Rule.of(NetworkProfile.load(network))
    rate = steady_rate(rule, JOBS)
    share = rate * rule.committee_size * ratio
    return AuditLoad(network, rule.committee_size, round(rate, 4), round(ratio, 4), round(share, 4))


def report(lab: Lab, job: LabJob, work: Path, *, quick: bool, say: Progress) -> dict[str, Any]:
    """All of it as JSON."""
    turns = 3 if quick else 7
    say(f"{lab.profile}: cost of an audit")
    hops = measure(lab, job, turns)
    ratio = sum(c.compute.audit_seconds for c in hops) / sum(c.compute.decode_seconds for c in hops)
    wholes = [c.whole for c in hops if c.whole is not None]
    whole = sum(w.audit_seconds for w in wholes) / sum(w.decode_seconds for w in wholes)
    result: dict[str, Any] = {
        "hops": [asdict(c) for c in hops],
        "route_ratio": round(ratio, 4),
        "route_whole_ratio": round(whole, 4),
        "load": [asdict(load(name, ratio)) for name in ("testnet", "production")],
        "load_whole": [asdict(load(name, whole)) for name in ("testnet", "production")],
        "target_ratio": TARGET_RATIO,
        "target_load": TARGET_LOAD,
    }
    if lab.profile == "exact":
        found = [cost for width in ((512,) if quick else (1024, 2048)) for cost in larger(work, 3, width, say)]
        result["larger"] = [asdict(cost) for cost in found]
    return result

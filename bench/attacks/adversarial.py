"""Perturbations that stay inside the tolerance and are aimed (9), and models made to be accused (27).

The aim is one gradient step where a hop can see what its rows do to tokens, which is the last one, and the best of a
few random directions elsewhere. It is no search: a descent of many steps, through all hops, may flip more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.attacks.executors import counter_normal
from bench.attacks.lab import RANGES, Job, Lab, Tensors, decoded, prefilled, publish, rewritten
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.engine.protocol import Executor
from efedllm.sampling import SamplingSpec
from verifier.statistic import FAIL_AT, Limits, Outcome, per_position

Rows = npt.NDArray[np.float32]

# Share of the tolerance that is used: the verifier's own rounding needs the rest.
USED = 0.85
# Relative size of the finite differences, large against float32 rounding.
_STEP = 1e-3
# Directions tried for a hop whose gradient is not known.
_DIRECTIONS = 6


@dataclass(frozen=True)
class Flips:
    """Positions whose likeliest token a perturbation changed, and what the auditor said of the hops that did it."""

    positions: int
    flipped: int
    largest_statistic: float
    accused: int

    @property
    def rate(self) -> float:
        return self.flipped / self.positions


def allowance(y: Rows, x: Rows, limits: Limits) -> npt.NDArray[np.float64]:
    """Length of the change of each row that the statistic still passes, [n, 1]."""
    update = np.linalg.norm(y.astype(np.float64) - x, axis=1, keepdims=True)
    length = np.linalg.norm(y.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(USED * (limits.tau * update + limits.rounding * length))


def towards_runner_up(head: Executor, row: Rows) -> Rows:
    """Unit direction [hidden] in which the second likeliest token gains most on the first, by finite differences."""
    base = head.logits(row[None])[0]
    second, first = np.argsort(base)[-2:]
    step = np.float32(_STEP * np.linalg.norm(row))
    nudged = head.logits(np.ascontiguousarray(row[None] + step * np.eye(len(row), dtype=np.float32)))
    gradient = (nudged[:, second] - nudged[:, first]) - (base[second] - base[first])
    return np.asarray(gradient / max(float(np.linalg.norm(gradient)), 1e-30), np.float32)


def one_hop(lab: Lab, jobs: Sequence[Job]) -> Flips:
    """The last hop moves every output row towards the runner-up by as much as passes."""
    last = len(RANGES) - 1
    head = lab.engines[last]
    positions = flipped = accused = 0
    worst = 0.0
    for job in jobs:
        y, x = lab.outputs(job, last), np.asarray(lab.inputs(job, last), np.float32)
        directions = np.stack([towards_runner_up(head, row) for row in y])
        moved = np.asarray(y + directions * allowance(y, x, lab.limits), np.float32)
        flipped += _flips(head, y, moved)
        positions += len(y)
        found = lab.judge(_greedy(lab, job, encode(moved, WireDtype.F32)), last)
        accused += found.outcome is not Outcome.PASS
        worst = max(worst, 0.0 if found.statistic is None else found.statistic.worst)
    return Flips(positions, flipped, worst, accused)


def all_hops(lab: Lab, jobs: Sequence[Job]) -> Flips:
    """Every hop moves its rows by as much as passes: the last as above, those before in the best of a few random
    directions for narrowing the lead of the likeliest token over the whole job."""
    head = lab.engines[-1]
    positions = flipped = accused = 0
    worst = 0.0
    for index, job in enumerate(jobs):
        honest = lab.outputs(job, len(RANGES) - 1)
        states: npt.NDArray[np.generic] = lab.inputs(job, 0)
        for hop, engine in enumerate(lab.engines):
            y = prefilled(engine, states)
            x = engine.embed(lab.inputs(job, 0)) if hop == 0 else np.asarray(states, np.float32)
            length = allowance(y, x, lab.limits)
            if hop == len(RANGES) - 1:
                moved = np.asarray(y + np.stack([towards_runner_up(head, row) for row in y]) * length, np.float32)
            else:
                moved = _best_direction(lab, hop, y, length, f"{index} {hop}".encode())
            stats = per_position(moved, y, x, WireDtype.F32, lab.limits)
            worst = max(worst, float(stats.max()))
            accused += float(stats.max()) > FAIL_AT
            states = moved
        flipped += _flips(head, honest, np.asarray(states, np.float32))
        positions += len(honest)
    return Flips(positions, flipped, worst, accused)


def _best_direction(lab: Lab, hop: int, y: Rows, length: npt.NDArray[np.float64], seed: bytes) -> Rows:
    best, narrowest = y, np.inf
    for trial in range(_DIRECTIONS):
        direction = counter_normal(seed + bytes([trial]), y.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        moved = np.asarray(y + direction * length, np.float32)
        states = moved
        for engine in lab.engines[hop + 1 :]:
            states = prefilled(engine, states)
        lead = _leads(lab.engines[-1], states).mean()
        if lead < narrowest:
            best, narrowest = moved, float(lead)
    return best


def _leads(head: Executor, hidden: Rows) -> npt.NDArray[np.float64]:
    """Lead of the likeliest token over the next, per row, in logits."""
    top = np.sort(head.logits(hidden), axis=1)[:, -2:].astype(np.float64)
    return np.asarray(top[:, 1] - top[:, 0])


def _flips(head: Executor, before: Rows, after: Rows) -> int:
    return int((head.logits(before).argmax(axis=1) != head.logits(after).argmax(axis=1)).sum())


def _greedy(lab: Lab, job: Job, output: bytes) -> Job:
    """The job with another output of the last hop and the tokens that a sampler draws from it."""
    changed = rewritten(job, len(RANGES), output)
    rows = lab.outputs(changed, len(RANGES) - 1)
    first = len(job.prompt) - 1
    head = lab.engines[-1]
    spec = SamplingSpec.from_job(job.spec)
    emitted = tuple(
        lab.choose(head, np.ascontiguousarray(rows[first + i : first + i + 1]), spec, len(job.prompt) + i)
        for i in range(len(job.emitted))
    )
    return replace(changed, emitted=emitted)


# --- a model made to be accused ---


def backdoored(tensors: Tensors, scale: float = 3e3) -> Tensors:
    """A checkpoint whose middle layers add and subtract the same large number: zero, but not in float32.

    In each MLP the first two hidden numbers are made equal and enter the output with opposite signs. What is left of
    their difference depends on the order in which the other products are summed between them.
    """
    changed: Tensors = dict(tensors)
    for name, tensor in tensors.items():
        kind = name.split(".mlp.")[-1]
        if kind in ("gate_proj.weight", "up_proj.weight"):
            twin = tensor.clone()
            twin[1] = twin[0]
            changed[name] = twin
        if kind == "down_proj.weight":
            hidden = tensor.clone()
            hidden[:, 0], hidden[:, 1] = scale, -scale
            changed[name] = hidden
    return changed


def spread(lab: Lab, job: Job) -> float:
    """The largest honest statistic of any hop of the job: decoding against a prefill of the same engine."""
    worst = 0.0
    states: npt.NDArray[np.generic] = lab.inputs(job, 0)
    for hop, engine in enumerate(lab.engines):
        ours = prefilled(engine, states)
        x = engine.embed(lab.inputs(job, 0)) if hop == 0 else np.asarray(states, np.float32)
        theirs = decoded(engine, states, len(job.prompt))
        worst = max(worst, float(per_position(theirs, ours, x, WireDtype.F32).max()))
        states = ours
    return worst


def same_bits(lab: Lab, job: Job) -> bool:
    """Whether decoding and a prefill give the same bytes at every hop."""
    states: npt.NDArray[np.generic] = lab.inputs(job, 0)
    for engine in lab.engines:
        ours = prefilled(engine, states)
        if decoded(engine, states, len(job.prompt)).tobytes() != ours.tobytes():
            return False
        states = ours
    return True


def publish_backdoored(work: Path) -> dict[str, Path]:
    """The backdoored model published dense in both profiles, by profile."""
    return {
        "float": publish("float", work / "backdoor-float", keep=1.0, whiten=False, change=backdoored),
        "exact": publish("exact", work / "backdoor-exact", keep=1.0, whiten=False, change=backdoored),
    }

"""Models made to be accused (27): float models whose sums depend on their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype
from efedllm_bench.attacks.lab import Lab, LabJob, Tensors, decoded, prefilled, publish
from efedllm_verifier.rerun import compared
from efedllm_verifier.statistic import MEASURED, Outcome, per_position


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


def spread(lab: Lab, job: LabJob) -> float:
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


def honest_pass(lab: Lab, job: LabJob) -> bool:
    """Whether a verifier passes every honest hop of the job, decoding, by the limits for sound models."""
    for hop, engine in enumerate(lab.engines):
        given = lab.inputs(job, hop)
        x = np.asarray(engine.embed(given) if hop == 0 else given, np.float32)
        sent = decoded(engine, given, len(job.prompt))
        ours = prefilled(engine, given)
        found = compared(engine, given, sent, ours, x, WireDtype.F32, MEASURED, job.spec.job_id)
        if found.outcome is not Outcome.PASS:
            return False
    return True


def same_bits(lab: Lab, job: LabJob) -> bool:
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

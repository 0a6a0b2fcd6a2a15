"""An honest fleet of different machines: does an auditor ever accuse one of them?

Every machine is a process with its own instruction set, threads and attention; it computes hops of honest jobs and of
inputs made to strain the numerics, in four ways of batching. `efedllm_verifier.statistic` judges all outputs against
one verifier's prefill, in the exact profile by equality of bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.hashing import keccak
from efedllm.engine.protocol import Executor
from efedllm_bench.attacks.lab import LAYERS, RANGES, Lab, Progress, prefilled
from efedllm_bench.attacks.statistics import rule_of_three
from efedllm_bench.calibration.limits import tau_of
from efedllm_bench.fleet.machines import Machine, compute
from efedllm_bench.fleet.stress import strained
from efedllm_verifier.conditioning import own_spread
from efedllm_verifier.rerun import compared
from efedllm_verifier.statistic import Outcome, compare, per_position

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceHop:
    """The verifier's side of one input: its engine, the input, its own rows, and the input in hidden space."""

    engine: Executor
    given: npt.NDArray[Any]
    ours: Rows
    residual: Rows


@dataclass
class Findings:
    """What the verifier made of the fleet. `tau`: the limit that it judged by; `token_hops`: positions of hops that
    some machine computed. Of inputs that a search found, apart from all others: `searched_hops` of them computed, the
    largest statistic by the limits alone, and where the limit of a row is at least what the verifier's own
    recomputation strays by."""

    tau: float
    token_hops: int = 0
    hops_judged: int = 0
    accused: int = 0
    worst: float = 0.0
    worst_machine: str = ""
    worst_input: str = ""
    differing_rows: int = 0
    log_sum: float = 0.0
    log_square: float = 0.0
    log_count: int = 0
    by_input: dict[str, float] = field(default_factory=dict)
    accused_inputs: dict[str, int] = field(default_factory=dict)
    searched_hops: int = 0
    searched_worst: float = 0.0
    searched_settled: float = 0.0

    def _calibrated(self, mean: float, spread: float) -> float:
        """The tolerance that these findings ask for. The statistic is in units of tau."""
        return tau_of(self.tau * self.worst, math.log(self.tau) + mean, spread)

    def report(self) -> dict[str, Any]:
        mean = self.log_sum / self.log_count if self.log_count else None
        spread = None if mean is None else (self.log_square / self.log_count - mean**2) ** 0.5
        return {
            "token_hops": self.token_hops,
            "hops_judged": self.hops_judged,
            "false_accusations": self.accused,
            "inputs_accused": self.accused_inputs,
            "bound_95_per_token_hop": rule_of_three(self.token_hops),
            "largest_statistic": self.worst,
            "machine_of_the_largest": self.worst_machine,
            "input_of_the_largest": self.worst_input,
            "largest_by_input": {name: round(value, 4) for name, value in sorted(self.by_input.items())},
            "rows_that_differ_in_a_bit": self.differing_rows,
            "searched": {
                "hops_judged": self.searched_hops,
                "largest_by_the_limits_alone": self.searched_worst,
                "largest_settled": self.searched_settled,
            },
            "log_statistic_mean": mean,
            "log_statistic_sd": spread,
            "tau": None if mean is None else self.tau,
            "tau_by_this_fleet": None if mean is None or spread is None else self._calibrated(mean, spread),
        }


def stress_inputs(lab: Lab, hop: int, positions: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    return strained(lab.inputs(lab.jobs[0], hop), lab.manifest.vocab, positions)


def long_context(lab: Lab, hop: int, length: int) -> npt.NDArray[Any]:
    """One sequence as long as asked for, at the input of a hop, from text run through the honest hops before."""
    ids = np.concatenate([np.frombuffer(job.boundaries[0], "<i4") for job in lab.jobs])
    states: npt.NDArray[Any] = np.resize(ids, length).astype(np.int32)
    for engine in lab.engines[:hop]:
        states = prefilled(engine, states)
    return states


def collect_inputs(
    lab: Lab,
    out: Path,
    *,
    texts: Sequence[Sequence[int]],
    positions: int,
    long: int,
    searched: Sequence[tuple[int, str, npt.NDArray[Any]]],
) -> None:
    """One .npz with the inputs of every hop: keys SET/HOP/NUMBER-NAME. SET is f32, bf16 (rounded as the wire does),
    stress, long or searched. `texts`: token ids; `searched`: (hop, name, input)."""
    arrays: dict[str, npt.NDArray[Any]] = {
        f"searched/{hop}/{index:03d}-{name}": given for index, (hop, name, given) in enumerate(searched)
    }
    states: list[npt.NDArray[Any]] = [np.asarray(ids, np.int32) for ids in texts]
    for hop, engine in enumerate(lab.engines):
        for index, given in enumerate(states):
            arrays[f"f32/{hop}/{index:03d}-text"] = given
            rounded = given if hop == 0 else decode(encode(given, WireDtype.BF16), WireDtype.BF16, lab.hidden)
            arrays[f"bf16/{hop}/{index:03d}-text"] = rounded
        for index, (name, given) in enumerate(stress_inputs(lab, hop, positions)):
            arrays[f"stress/{hop}/{index:03d}-{name}"] = given
        arrays[f"long/{hop}/000-{long} positions"] = long_context(lab, hop, long)
        states = [prefilled(engine, given) for given in states]
    np.savez(out, **arrays)  # type: ignore[arg-type]


def run(
    lab: Lab,
    work: Path,
    fleet: Sequence[Machine],
    *,
    texts: Sequence[Sequence[int]],
    decoded: int,
    long: int,
    say: Progress,
    searched: Sequence[tuple[int, str, npt.NDArray[Any]]] = (),
) -> Findings:
    """Let the fleet compute, judge everything. `decoded`: sequences of each kind that are also decoded one by one;
    `searched`: (hop, name, input) that a search found."""
    assert RANGES[-1][1] == LAYERS
    inputs = work / f"fleet-{lab.profile}.npz"
    collect_inputs(lab, inputs, texts=texts, positions=96, long=long, searched=searched)
    sets = ["f32", "stress", "long", "searched"] + ([] if lab.profile == "exact" else ["bf16"])
    references: dict[str, ReferenceHop] = {}
    with np.load(inputs) as stored:
        given = {key: stored[key] for key in stored.files if key.split("/")[0] in sets}
    for key, x in given.items():
        engine = lab.engines[int(key.split("/")[1])]
        residual = engine.embed(x) if engine.has_embedding else x
        references[key] = ReferenceHop(engine, x, prefilled(engine, x), np.asarray(residual, np.float32))
    findings = Findings(lab.limits.tau)
    for number, machine in enumerate(fleet):
        say(f"{lab.profile} fleet: machine {number + 1} of {len(fleet)}: {machine.name}")
        # One position at a time is what takes long: two machines do it for the long context.
        spared = [("long", "decode"), ("long", "mixed")] if number > 1 else [("long", "mixed")]
        made = compute(lab.published, RANGES, work, machine, inputs, sets, decoded, spared)
        with np.load(made) as outputs:
            for name in outputs.files:
                _judge(findings, lab, machine, name, outputs[name], references)
    return findings


def _judge(
    findings: Findings,
    lab: Lab,
    machine: Machine,
    name: str,
    rows: Rows,
    references: dict[str, ReferenceHop],
) -> None:
    """One hop of one sequence in one way of batching; name: MODE/SET/HOP/NUMBER-NAME."""
    mode, key = name.split("/", 1)
    kind, _, label = key.split("/")
    known = references[key]
    ours, x = known.ours, known.residual
    findings.token_hops += len(rows)
    findings.hops_judged += 1
    findings.searched_hops += kind == "searched"
    if lab.profile == "exact":
        differing = int(np.any(rows.view(np.uint32) != ours.view(np.uint32), axis=1).sum())
        findings.differing_rows += differing
        findings.accused += differing > 0
        return
    wire = WireDtype.BF16 if kind == "bf16" else WireDtype.F32
    sent = decode(encode(rows, wire), wire, lab.hidden)
    plain = compare(sent, ours, x, wire, lab.limits)
    seed = keccak(key.encode())
    found = compared(known.engine, known.given, sent, ours, x, wire, lab.limits, seed)
    findings.differing_rows += int(np.any(rows.view(np.uint32) != ours.view(np.uint32), axis=1).sum())
    what = label.split("-", 1)[1] + (" (bf16 wire)" if kind == "bf16" else "")
    if found.outcome is not Outcome.PASS:
        findings.accused += 1
        findings.accused_inputs[what] = findings.accused_inputs.get(what, 0) + 1
    if kind == "searched":
        findings.searched_worst = max(findings.searched_worst, plain.worst)
        spread = own_spread(known.engine, known.given, ours, seed)
        settled = compare(sent, ours, x, wire, lab.limits, spread)
        findings.searched_settled = max(findings.searched_settled, settled.worst)
        return
    findings.by_input[what] = max(findings.by_input.get(what, 0.0), plain.worst)
    if plain.worst > findings.worst:
        findings.worst, findings.worst_machine, findings.worst_input = plain.worst, f"{machine.name}, {mode}", what
    if wire is WireDtype.F32:
        stats = per_position(sent, ours, x, wire, lab.limits)
        logs = np.log(stats[stats > 0])
        findings.log_sum += float(logs.sum())
        findings.log_square += float((logs**2).sum())
        findings.log_count += len(logs)

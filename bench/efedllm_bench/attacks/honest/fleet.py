"""An honest fleet of different machines: does an auditor ever accuse one of them?

Every machine is a process with its own instruction set, threads and attention; it computes hops of honest jobs and of
inputs made to strain the numerics, in four ways of batching. `efedllm_verifier.statistic` judges all outputs against
one verifier's prefill, in the exact profile by equality of bits.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.hashing import keccak
from efedllm.engine.protocol import Executor
from efedllm.kernels.native import SWITCH, library
from efedllm_bench.attacks.honest.worker import MODES
from efedllm_bench.attacks.lab import LAYERS, RANGES, Lab, Progress, prefilled
from efedllm_bench.attacks.statistics import rule_of_three
from efedllm_bench.calibration.limits import tau_of
from efedllm_verifier.conditioning import own_spread
from efedllm_verifier.rerun import compared
from efedllm_verifier.statistic import Outcome, compare, per_position

Rows = npt.NDArray[np.float32]

CAPABILITIES = ("default", "avx2", "avx512")
WORKER_SECONDS = 600


@dataclass(frozen=True)
class Machine:
    """One kind of honest machine. `native`: what its products with integer weights run on, as EFEDLLM_NATIVE says it;
    empty for the best it has."""

    threads: int
    capability: str
    eager: bool
    native: str = ""

    @property
    def name(self) -> str:
        native = "" if not self.native else ", no native products" if self.native == "0" else f", native {self.native}"
        return f"{self.threads} thread(s), {self.capability}, {'eager' if self.eager else 'sdpa'}{native}"

    @property
    def environment(self) -> dict[str, str]:
        # Threads that spin while they wait starve each other where the cores are shared.
        known = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if self.capability != "default":
            known["ATEN_CPU_CAPABILITY"] = self.capability
        if self.native:
            known[SWITCH] = self.native
        return known


def machines(*, eager: bool, quick: bool) -> list[Machine]:
    """Threads, instruction set and attention: every pair of settings stands together on some machine. `quick`: two
    instruction sets only. The exact profile has attention of its own, for which `eager` changes nothing.
    """
    capabilities = CAPABILITIES[:2] if quick else CAPABILITIES
    found = []
    for number, capability in enumerate(capabilities):
        for threads in (1, 2):
            found.append(Machine(threads, capability, eager and (number + threads) % 2 == 0))
    return found


def native_machines() -> list[Machine]:
    """One machine for each other way of multiplying with integer weights: every slower instruction set that ours has,
    and none, as where there was no compiler."""
    found = library()
    slower = found.variants[1:] if found is not None else ()
    ways = [*(variant.name.lower() for variant in slower), *(("0",) if found is not None else ())]
    return [Machine(1, "default", number % 2 == 0, way) for number, way in enumerate(ways)]


@dataclass(frozen=True)
class Reference:
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


def strained(given: npt.NDArray[Any], vocab: int, positions: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """(what, input) made from one input of a hop, token ids or rows, to search for honest spread: repeated ids,
    outliers, huge and tiny residuals, equal rows."""
    if given.ndim == 1:
        yield "constant tokens", np.full(positions, 11 % vocab, np.int32)
        yield "two tokens in turn", ((np.arange(positions, dtype=np.int32) % 2) * 77 + 5) % vocab
        yield "tokens far apart", np.arange(positions, dtype=np.int32) * max(1, vocab // positions) % vocab
        return
    x = np.asarray(given, np.float32)
    yield "residual x 1e2", x * np.float32(1e2)
    yield "residual x 1e4", x * np.float32(1e4)
    yield "residual x 1e-4", x * np.float32(1e-4)
    outlier = x.copy()
    outlier[:, 3] *= 1000
    yield "one outlier dimension", outlier
    spikes = x.copy()
    spikes[::5, 17] += 3000
    yield "massive activations", spikes
    yield "equal rows", np.repeat(x[:1], positions, axis=0)
    signs = x.copy()
    signs[::2] *= -1
    yield "signs in turn", signs


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
    references: dict[str, Reference] = {}
    with np.load(inputs) as stored:
        given = {key: stored[key] for key in stored.files if key.split("/")[0] in sets}
    for key, x in given.items():
        engine = lab.engines[int(key.split("/")[1])]
        residual = engine.embed(x) if engine.has_embedding else x
        references[key] = Reference(engine, x, prefilled(engine, x), np.asarray(residual, np.float32))
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


def compute(
    published: Path,
    ranges: Sequence[tuple[int, int]],
    work: Path,
    machine: Machine,
    inputs: Path,
    sets: list[str],
    decoded: int,
    without: Sequence[tuple[str, str]] = (),
    modes: Iterable[str] = MODES,
) -> Path:
    """Let one machine compute the inputs SET/RANGE/NAME of an .npz; an .npz of rows MODE/SET/RANGE/NAME. `decoded`:
    inputs of each set and range that it also decodes one by one; `without`: pairs (set, mode) to leave out; `modes`: of
    the worker."""
    out, task = work / "fleet-out.npz", work / "fleet-task.json"
    task.write_text(
        json.dumps(
            {
                "threads": machine.threads,
                "eager": machine.eager,
                "published": str(published),
                "ranges": list(ranges),
                "inputs": str(inputs),
                "out": str(out),
                "sets": sets,
                "modes": list(modes),
                "limits": {"decode": decoded},
                "without": list(without),
            }
        )
    )
    subprocess.run(
        [sys.executable, "-m", "efedllm_bench.attacks.honest.worker", str(task)],
        env=machine.environment,
        check=True,
        timeout=WORKER_SECONDS,
    )
    return out


def _judge(
    findings: Findings,
    lab: Lab,
    machine: Machine,
    name: str,
    rows: Rows,
    references: dict[str, Reference],
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

"""Running every strategy against many jobs: how often it is caught, how it scores, what it saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from efedllm.engine.protocol import Executor
from efedllm_bench.attacks.lab import RANGES, Lab, LabJob, Progress, cheated, decoded, drawn_again, prefilled
from efedllm_bench.attacks.other_schemes import METHODS, all_scores
from efedllm_bench.attacks.statistics import Scores
from efedllm_bench.cheats.catalog import Attack, ExpectedVerdict, NumericProfile, applies
from efedllm_verifier.statistic import Outcome


@dataclass
class Tally:
    """What became of one strategy. Seconds are of decoding one hop of one job, the fastest run of each kind."""

    audits: int = 0
    failed: int = 0
    severe: int = 0
    tokens: int = 0  # positions of all audited hops
    codes: dict[str, int] = field(default_factory=dict)
    # Per method, one array per audited hop.
    scores: dict[str, list[Scores]] = field(default_factory=lambda: {name: [] for name in METHODS})
    cheat_seconds: float = 0.0
    honest_seconds: float = 0.0
    weight_bytes: int = 0
    published_bytes: int = 0
    # Of the jobs behind the seconds, all hops together.
    positions: int = 0

    def joined(self, method: str) -> Scores:
        """All scores of a method, one after the other."""
        return np.concatenate(self.scores[method])

    @property
    def saved(self) -> float:
        """Share of the hop's seconds that the cheat saves; negative where it takes longer."""
        return 0.0 if self.honest_seconds == 0 else 1 - self.cheat_seconds / self.honest_seconds


@dataclass(frozen=True)
class ReferenceRows:
    """What the verifier's own prefill of an honest hop gives, once for all cheats."""

    ours: np.typing.NDArray[np.float32]
    residual: np.typing.NDArray[np.float32]


def references(lab: Lab, jobs: Sequence[LabJob]) -> dict[tuple[int, int], ReferenceRows]:
    """By (hop, job index)."""
    found = {}
    for hop, engine in enumerate(lab.engines):
        for index, job in enumerate(jobs):
            inputs = lab.inputs(job, hop)
            x = engine.embed(inputs) if hop == 0 else inputs
            found[hop, index] = ReferenceRows(prefilled(engine, inputs), np.asarray(x, np.float32))
    return found


def honest(lab: Lab, jobs: Sequence[LabJob], known: dict[tuple[int, int], ReferenceRows]) -> Tally:
    """The same for the jobs as they are."""
    tally = Tally()
    for hop in range(len(RANGES)):
        for index, job in enumerate(jobs):
            _count(lab, tally, job, hop, known[hop, index])
    return tally


AUDITS = 36
"""Of every strategy, where there are jobs enough: those that few hops can play are played on more jobs."""


def enough(item: Attack, profile: NumericProfile, jobs: Sequence[LabJob]) -> Sequence[LabJob]:
    """The first of `jobs`, so many that all hops together come to AUDITS."""
    hops = sum(applies(item, profile, hop, len(RANGES)) for hop in range(len(RANGES)))
    return jobs[: -(-AUDITS // max(1, hops))]


def run(lab: Lab, item: Attack, jobs: Sequence[LabJob], known: dict[tuple[int, int], ReferenceRows]) -> Tally | None:
    """Every hop that can do it cheats on every job; None where the strategy does not apply to the profile."""
    if item.expected(lab.profile) is ExpectedVerdict.NONE:
        return None
    tally = Tally()
    spent: list[tuple[float, float]] = []
    for hop in range(len(RANGES)):
        if not applies(item, lab.profile, hop, len(RANGES)):
            continue
        executor = item.arm(lab.shop(jobs[-1]), lab.engines[hop])
        if item.sampled:
            for made in drawn_again(lab, jobs, hop, executor):
                _count(lab, tally, made, hop, None)
        else:
            for index, job in enumerate(jobs):
                if item.number == 12 and index > 0:
                    # The rows of the job before are what a replay sends.
                    executor = item.arm(lab.shop(jobs[index - 1]), lab.engines[hop])
                _count(lab, tally, cheated(lab, job, hop, executor, sampled=False), hop, known[hop, index])
        tally.weight_bytes += executor.weight_bytes
        tally.published_bytes += lab.engines[hop].weight_bytes
        if lab.profile in item.timed:
            tally.positions += jobs[0].positions
            spent.append(race(lab, jobs[0], hop, executor))
    tally.cheat_seconds = sum(cheat for cheat, _ in spent)
    tally.honest_seconds = sum(plain for _, plain in spent)
    return tally


def _count(lab: Lab, tally: Tally, job: LabJob, hop: int, reference: ReferenceRows | None) -> None:
    result = lab.judge(job, hop)
    tally.audits += 1
    tally.tokens += job.positions
    tally.failed += result.outcome >= Outcome.FAIL
    tally.severe += result.outcome is Outcome.SEVERE
    if result.fault is not None:
        tally.codes[result.fault.code] = tally.codes.get(result.fault.code, 0) + 1
    if reference is not None:
        for name, values in all_scores(lab.outputs(job, hop), reference.ours, reference.residual, lab.limits).items():
            tally.scores[name].append(values)


def race(lab: Lab, job: LabJob, hop: int, executor: Executor, turns: int = 2) -> tuple[float, float]:
    """Seconds of decoding the hop of a job by the cheat and honestly: they take turns, the fastest of each counts."""
    inputs, prompt = lab.inputs(job, hop), len(job.prompt)
    best = [np.inf, np.inf]
    for _ in range(turns):
        for place, engine in enumerate((executor, lab.engines[hop])):
            started = time.perf_counter()
            decoded(engine, inputs, prompt)
            best[place] = min(best[place], time.perf_counter() - started)
    return float(best[0]), float(best[1])


def run_all(
    lab: Lab, attacks: Sequence[Attack], jobs: Sequence[LabJob], drawn: Sequence[LabJob], say: Progress
) -> tuple[Tally, dict[str, Tally]]:
    """The honest tally and that of every strategy that applies, by name. `drawn`: jobs of many tokens, for what only
    shows where tokens are drawn."""
    known = references(lab, jobs)
    plain = honest(lab, jobs, known)
    found: dict[str, Tally] = {}
    for done, item in enumerate(attacks):
        if done % 8 == 0:
            say(f"{lab.profile}: {done} of {len(attacks)} strategies")
        tally = run(lab, item, drawn if item.sampled else enough(item, lab.profile, jobs), known)
        if tally is not None:
            found[item.name] = tally
    return plain, found

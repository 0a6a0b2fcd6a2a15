"""Perturbations inside the tolerance, aimed at tokens by projected gradient ascent (9).

The statistic lets a hop move each of its rows by a limited length. Two searches use that length:

- The last hop alone. One of its rows decides one token, so each row is searched by itself.
- All hops together. Every hop moves all rows up to the position searched, each within its own limit. Positions are
  searched one by one, in ascending order of the lead of the likeliest token over another. The search ends where that
  lead is BEYOND times the largest gain so far. The first gradient step estimates the gain; more steps follow only
  where the lead is below BEYOND times that estimate.

Gradients flow through the published weights (`differentiable`). The engines of nodes then compute the rows that a
search found, and the verifier's code judges them like any other hop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.messages import JobSpec
from efedllm.sampling.float import SamplingSpec, are_consistent
from efedllm_bench.attacks.lab import GREEDY, RANGES, Lab, LabJob, Progress, prefilled, spec_of
from efedllm_bench.attacks.search.differentiable import DifferentiableHop
from efedllm_bench.attacks.statistics import wilson
from efedllm_verifier.statistic import DeviationLimits, Outcome, logit_tolerances

Rows = npt.NDArray[np.float32]

USED = 0.95
"""Share of the tolerance that is used: the verifier's own rounding needs the rest."""

STEPS = 16

JOINT_STEPS = 8
"""Of the search of all hops, where each runs the whole model forth and back."""

CANDIDATES = 5
"""Likeliest tokens of a position, the first of which is to be replaced by one of the others."""

BEYOND = 2.0
"""A lead so many times what was gained is out of reach: the rest of the steps add a thousandth to the first."""

FEWEST = 8
"""Positions at least that all hops are searched for, whatever the leads."""


@dataclass(frozen=True)
class Reach:
    """One search for one token at one position.

    lead: of the likeliest token over this one, in logits (differences of logits are nats); first: reduction of the lead
    by the first step; gain: reduction by the best step; flipped: whether the audit passes with this token.
    """

    lead: float
    first: float
    gain: float
    flipped: bool


@dataclass(frozen=True)
class Descent:
    """The results of all searches.

    positions: searched; flips: positions whose token could be replaced; by_tokens_alone: those of them where an audit
    passes with the other token although no row was moved; accused: failed audits of `audits`.
    """

    positions: int
    reached: tuple[Reach, ...]
    flips: int
    by_tokens_alone: int
    largest_statistic: float
    accused: int
    audits: int

    def report(self) -> dict[str, Any]:
        """As JSON. Gains and leads in logits; none where nothing flipped."""
        gains = np.array([one.gain for one in self.reached])
        flipped = [one.lead for one in self.reached if one.flipped]
        return {
            "positions": self.positions,
            "searches": len(self.reached),
            "audits": self.audits,
            "audits_failed": self.accused,
            "largest_statistic": self.largest_statistic,
            "flipped": self.flips,
            "flip_rate": round(self.flips / self.positions, 6),
            "flip_interval": asdict(wilson(self.flips, self.positions)),
            "flipped_by_the_rule_for_tokens_alone": self.by_tokens_alone,
            "largest_lead_flipped": max(flipped, default=None),
            "median_lead_flipped": float(np.median(flipped)) if flipped else None,
            "gain_median": float(np.median(gains)),
            "gain_largest": float(gains.max()),
            "gain_over_one_step": float(np.max(gains / [one.first for one in self.reached])),
        }


def allowance(y: Tensor, x: Tensor, limits: DeviationLimits, times: float = 1.0) -> Tensor:
    """Length of the change of each row y of a hop that read x that the statistic passes, `times` as much: [n, 1]."""
    update, size = (y - x).norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    room: Tensor = USED * times * (limits.tau * update + limits.rounding * size)
    return room


def ascend(
    margins: Callable[[Sequence[Tensor]], Tensor], units: Sequence[Tensor], steps: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Projected gradient ascent over rows inside unit balls. Returns (best rows, first margins, best margins).

    units: where to begin, each [n, hidden]; `margins` gives [k], one for all rows or one for each row of the only one
    of `units`. Step i moves every row by 1 / sqrt(i + 1) along its own gradient, then back into its ball; the first
    step alone is the answer of a linear model. Best is by margin, each where there are several.
    """
    now = [unit.clone().requires_grad_(True) for unit in units]
    best = [unit.clone() for unit in units]
    first = highest = margins(now).detach()
    for step in range(steps):
        gradients = torch.autograd.grad(margins(now).sum(), now)
        with torch.no_grad():
            moved = [unit + gradient_step(slope, step) for unit, slope in zip(now, gradients, strict=True)]
            now = [(unit / unit.norm(dim=1, keepdim=True).clamp(min=1.0)).requires_grad_(True) for unit in moved]
            found = margins(now)
            better = found > highest
            highest = torch.where(better, found, highest)
            if step == 0:
                first = found
        for kept, unit in zip(best, now, strict=True):
            rows = better if len(better) == len(kept) else better.expand(len(kept))
            kept[rows] = unit.detach()[rows]
    return best, first, highest


def gradient_step(slope: Tensor, step: int) -> Tensor:
    """The move of step number `step` from 0 along `slope` [n, hidden]."""
    move: Tensor = slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-30) / (step + 1) ** 0.5
    return move


# --- the last hop alone ---


def last_hop(lab: Lab, texts: Sequence[Sequence[int]], *, times: float = 1.0, steps: int = STEPS) -> Descent:
    """Every output row of the last hop moved towards the most promising of the next likeliest tokens.

    Texts are fed whole, so that positions are those of the texts. `times`: the tolerance that the cheat assumes, in
    units of the model's own, by which it is judged.
    """
    hop = len(RANGES) - 1
    gradient = DifferentiableHop.load(lab.published, *RANGES[hop])
    reached: list[Reach] = []
    flips = alone = accused = 0
    worst = 0.0
    for index, text in enumerate(texts):
        honest = forced(lab, text, index)
        y, x = lab.outputs(honest, hop), np.asarray(lab.inputs(honest, hop), np.float32)
        logits = lab.engines[hop].logits(y)
        targets = np.argsort(-logits, axis=1, kind="stable")[:, :CANDIDATES]
        length = allowance(torch.tensor(y), torch.tensor(x), lab.limits, times)
        moved, searched = _row_by_row(gradient, y, logits, targets, length, steps)
        tokens = accepted(lab, honest.spec, moved, targets)
        flipped = tokens != targets[:, 0]
        unmoved = accepted(lab, honest.spec, y, targets)
        alone += int(np.count_nonzero(unmoved != targets[:, 0]))
        flips += int(np.count_nonzero(flipped))
        reached += [replace(one, flipped=bool(flipped[row])) for row, one in enumerate(searched)]
        result = lab.judge(with_output(honest, hop, moved, tokens), hop)
        accused += result.outcome is not Outcome.PASS
        worst = max(worst, 0.0 if result.statistic is None else result.statistic.worst)
    return Descent(len(reached), tuple(reached), flips, alone, worst, accused, len(texts))


def _row_by_row(
    gradient: DifferentiableHop,
    y: Rows,
    logits: Rows,
    targets: npt.NDArray[np.intp],
    length: Tensor,
    steps: int,
) -> tuple[Rows, list[Reach]]:
    """Rows moved towards the target whose margin comes out highest, and what that search gained.

    The runner-up is searched for at every row, the other candidates where their lead is within BEYOND of its gain.
    """
    base = torch.tensor(y)
    moved = y.copy()
    found: list[Reach] = []
    margin = np.full(len(y), -np.inf)
    gained = np.full(len(y), np.inf)
    lead = logits[np.arange(len(y)), targets[:, 0]][:, None] - np.take_along_axis(logits, targets, axis=1)
    for rank in range(1, targets.shape[1]):
        rows = np.flatnonzero(lead[:, rank] <= BEYOND * gained)
        if not len(rows):
            break
        pair = torch.from_numpy(targets[rows][:, [0, rank]].astype(np.int64))
        start, room = base[rows], length[rows]

        def margins(units: Sequence[Tensor], start: Tensor = start, room: Tensor = room, pair: Tensor = pair) -> Tensor:
            two = gradient.logits(start + room * units[0]).gather(1, pair)
            return two[:, 1] - two[:, 0]

        (unit,), first, highest = ascend(margins, [torch.zeros_like(start)], steps)
        made = (start + room * unit).numpy()
        for place, row in enumerate(rows.tolist()):
            away = float(lead[row, rank])
            reach = Reach(away, float(first[place]) + away, float(highest[place]) + away, False)
            if rank == 1:
                found.append(reach)
                gained[row] = reach.gain
            if highest[place] > margin[row]:
                margin[row], moved[row], found[row] = float(highest[place]), made[place], reach
    return moved, found


# --- all hops together ---


def all_hops(
    lab: Lab, texts: Sequence[Sequence[int]], say: Progress, *, steps: int = JOINT_STEPS, fewest: int = FEWEST
) -> Descent:
    """Every hop moves its rows, all towards one other token at one position; each position by itself."""
    gradients = [DifferentiableHop.load(lab.published, *layers) for layers in RANGES]
    found: list[tuple[float, int, int, int, int]] = []
    alone = 0
    for index, text in enumerate(texts):
        honest = forced(lab, text, index)
        y = lab.outputs(honest, len(RANGES) - 1)
        logits = lab.engines[-1].logits(y)
        targets = np.argsort(-logits, axis=1, kind="stable")[:, :CANDIDATES]
        alone += int(np.count_nonzero(accepted(lab, honest.spec, y, targets) != targets[:, 0]))
        for row, own in enumerate(targets.tolist()):
            found += [(float(logits[row, own[0]] - logits[row, other]), index, row, own[0], other) for other in own[1:]]
    reached: list[Reach] = []
    flipped: set[tuple[int, int]] = set()
    accused = audits = 0
    worst = largest = 0.0
    for lead, index, row, likeliest, other in sorted(found):
        if len(reached) >= fewest and lead > BEYOND * largest:
            break
        if (index, row) in flipped:
            continue
        if len(reached) % 20 == 0:
            say(f"all hops: {len(reached)} searches, {len(flipped)} tokens replaced, lead {lead:.3g}")
        ids = np.asarray(texts[index][: row + 1], np.int32)
        _, first, _ = _towards(lab, gradients, ids, (likeliest, other), 1)
        near = float(first) + lead
        largest = max(largest, near)
        if len(reached) >= fewest and lead > BEYOND * near:
            reached.append(Reach(lead, near, near, False))
            continue
        units, first, best = _towards(lab, gradients, ids, (likeliest, other), steps)
        job = _played(lab, ids, units, np.array([[likeliest, other]]), index)
        audited = [lab.judge(job, hop) for hop in range(len(RANGES))]
        fine = all(result.outcome is Outcome.PASS for result in audited)
        audits += len(audited)
        accused += sum(result.outcome is not Outcome.PASS for result in audited)
        worst = max(worst, *(result.statistic.worst for result in audited if result.statistic is not None))
        gain = float(best) + lead
        reached.append(Reach(lead, float(first) + lead, gain, fine and job.emitted[0] != likeliest))
        largest = max(largest, gain)
        if reached[-1].flipped:
            flipped.add((index, row))
    positions = sum(len(text) for text in texts)
    return Descent(positions, tuple(reached), len(flipped), alone, worst, accused, audits)


def _towards(
    lab: Lab,
    gradients: Sequence[DifferentiableHop],
    ids: npt.NDArray[np.int32],
    pair: tuple[int, int],
    steps: int,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Directions [n, hidden] of every hop's rows, at most of length 1, the first and the best margin of the second
    token of `pair` over the first after the last of the `ids`."""
    start = gradients[0].embed(ids)

    def margins(units: Sequence[Tensor]) -> Tensor:
        states = start
        for gradient, unit in zip(gradients, units, strict=True):
            y = gradient.states(states)
            states = y + allowance(y.detach(), states.detach(), lab.limits) * unit
        logits = gradients[-1].logits(states[-1:])[0]
        return (logits[pair[1]] - logits[pair[0]]).unsqueeze(0)

    units, first, best = ascend(margins, [torch.zeros_like(start) for _ in gradients], steps)
    return units, first[0], best[0]


def _played(
    lab: Lab, ids: npt.NDArray[np.int32], units: Sequence[Tensor], targets: npt.NDArray[np.intp], index: int
) -> LabJob:
    """The prompt `ids` through the engines of nodes that move their rows so, and one token: the target where an audit
    lets it pass."""
    spec = spec_of(index, tuple(ids.tolist()), 1, GREEDY, WireDtype.F32)
    states: npt.NDArray[np.generic] = ids
    boundaries = [ids.astype("<i4").tobytes()]
    rows = lab.engines[0].embed(ids)
    for engine, unit in zip(lab.engines, units, strict=True):
        x = np.asarray(rows, np.float32)
        y = prefilled(engine, states)
        room = allowance(torch.tensor(y), torch.tensor(x), lab.limits)
        rows = (torch.tensor(y) + room * unit).numpy()
        states = rows
        boundaries.append(encode(rows, WireDtype.F32))
    job = LabJob(spec, tuple(ids.tolist()), tuple(boundaries), ())
    (token,) = accepted(lab, spec, rows[-1:], targets)
    return replace(job, emitted=(int(token),))


# --- jobs over given texts ---


def forced(lab: Lab, text: Sequence[int], index: int) -> LabJob:
    """An honest job whose prompt is the first token of `text`, and whose every further position is fed from it.

    The likeliest token is emitted at every position. A verifier of any hop but a whole route's sees nothing odd in it:
    what a last hop emitted is not what the first was fed.
    """
    ids = np.asarray(text, np.int32)
    spec = spec_of(index, tuple(text[:1]), len(text), GREEDY, WireDtype.F32)
    boundaries = [ids.astype("<i4").tobytes()]
    states: npt.NDArray[np.generic] = ids
    for engine in lab.engines:
        rows = prefilled(engine, states)
        boundaries.append(encode(rows, WireDtype.F32))
        states = rows
    job = LabJob(spec, tuple(text[:1]), tuple(boundaries), ())
    tokens = lab.engines[-1].logits(lab.outputs(job, len(RANGES) - 1)).argmax(axis=1)
    return replace(job, emitted=tuple(tokens.tolist()))


def accepted(lab: Lab, spec: JobSpec, rows: Rows, targets: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The token to emit after each row: the candidate with the highest logit but the first, where the verifier's rule
    for tokens lets it pass, else the likeliest. `targets` [n, m]: the first of each is the honest token."""
    logits = lab.engines[-1].logits(np.ascontiguousarray(rows))
    others = np.take_along_axis(logits, targets[:, 1:], axis=1).argmax(axis=1)
    chosen = targets[np.arange(len(targets)), 1 + others]
    sampling = SamplingSpec.from_job(spec)
    tolerances = logit_tolerances(logits, lab.limits).tolist()
    passes = are_consistent(logits, sampling, spec.prompt_tokens, chosen.tolist(), tolerances)
    return np.asarray(np.where(passes, chosen, logits.argmax(axis=1)), np.intp)


def with_output(job: LabJob, hop: int, rows: Rows, tokens: npt.NDArray[np.intp]) -> LabJob:
    """The job with other rows of the last hop and other tokens."""
    boundaries = (*job.boundaries[: hop + 1], encode(rows, WireDtype.F32))
    return replace(job, boundaries=boundaries, emitted=tuple(int(token) for token in tokens))

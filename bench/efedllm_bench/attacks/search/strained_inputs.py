"""A search for inputs on which honest machines differ most (24), and the verifier's judgement of honest nodes there.

A later hop reads the rows that the node before it sends. Two searches make such rows: gradient descent, through the
weights of the hop, towards rows that a layer nearly cancels; and evolution over mixtures, scales, outliers, sparse and
equal rows, with descent as one of the mutations. A third search exchanges a few token ids at a time. All random choices
come from hashes. The strain of an input is the largest statistic between honest ways to compute it: at once, in pieces,
one position at a time, with the textbook's attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import keccak
from efedllm.engine.select import load_executor
from efedllm_bench.attacks.lab import RANGES, Lab, Progress, prefilled
from efedllm_bench.attacks.search.differentiable import DifferentiableHop
from efedllm_bench.fleet.stress import strained
from efedllm_bench.fleet.worker import decode, pieces, prefill, textbook_attention
from efedllm_verifier.conditioning import own_spread
from efedllm_verifier.rerun import compared
from efedllm_verifier.statistic import HALF_LIMITS, Outcome, compare, per_position

Rows = npt.NDArray[np.float32]
Inputs = npt.NDArray[Any]

LARGEST = np.float32(1e30)
"""Beyond it squares of rows are no float32 numbers."""


@dataclass(frozen=True)
class Effort:
    """How long to search. `rows`: positions of an input; `descents`: gradient steps for the first rows of a hop, and
    `short`: of the mutation; `generations` of `children` each; `tokens`: generations over token ids."""

    rows: int = 24
    descents: int = 1200
    short: int = 60
    generations: int = 8
    children: int = 16
    tokens: int = 12


QUICK = Effort(rows=16, descents=300, short=30, generations=2, children=6, tokens=2)


@dataclass(frozen=True, eq=False)
class Strained:
    """One input of a hop and what honest machines make of it.

    plain: largest statistic by the model's limits alone, 1 fails; settled: the same where the limit of a row is at
    least what the verifier's own recomputation strays by; accused: honest ways that the verifier found fault with.
    """

    hop: int
    name: str
    given: Inputs
    plain: float
    settled: float
    accused: int


def honest_ways(lab: Lab, hop: int, given: Inputs) -> Iterator[Rows]:
    """Outputs of honest machines for one input, in this process."""
    engine = lab.engines[hop]
    for size in (4, 5):
        yield pieces(engine, [given], size)[0]
    yield decode(engine, [given])[0]
    with textbook_attention():
        yield prefill(engine, [given])[0]


def measured(lab: Lab, hop: int, name: str, given: Inputs) -> Strained | None:
    """What honest ways make of one input; None where it has no finite output, which no hop can commit to."""
    engine = lab.engines[hop]
    ours = prefilled(engine, given)
    residual = engine.embed(given) if engine.has_embedding else given
    if not np.isfinite(ours).all():
        return None
    seed = keccak(name.encode())
    spread = own_spread(engine, given, ours, seed)
    plain = settled = 0.0
    accused = 0
    for rows in honest_ways(lab, hop, given):
        if not np.isfinite(rows).all():
            return None
        plain = max(plain, float(per_position(rows, ours, residual, WireDtype.F32, lab.limits).max()))
        settled = max(settled, float(per_position(rows, ours, residual, WireDtype.F32, lab.limits, spread).max()))
        found = compared(engine, given, rows, ours, residual, WireDtype.F32, lab.limits, seed)
        accused += found.outcome is not Outcome.PASS
    return Strained(hop, name, given, plain, settled, accused)


# --- rows by descent ---


def cancelling(hop: DifferentiableHop, start: Rows, depth: int, steps: int, rate: float = 0.01) -> Rows:
    """Rows near which the first `depth` layers of a hop add up to nothing, from `start` [n, hidden].

    Adam on the sum over positions of log(|output| / |input|), by `rate` times the mean magnitude of `start`, a fifth of
    it in the last third of the steps. What is left of a sum that cancels is rounding, and the next norm makes it large.
    """
    part = replace(hop, modules=replace(hop.modules, layers=hop.modules.layers[:depth]))
    x = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=rate * float(np.abs(start).mean()))
    for step in range(steps):
        if step == 2 * steps // 3:
            optimizer.param_groups[0]["lr"] *= 0.2
        optimizer.zero_grad()
        left = (torch.log(part.states(x).norm(dim=1)) - torch.log(x.norm(dim=1))).sum()
        left.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return np.asarray(x.detach().numpy(), np.float32)


# --- evolution ---

Draw = np.random.Generator
Mutation = Callable[[Draw, Rows, Rows], Rows]
"""(numbers drawn from a hash, rows, rows of another input) -> other rows; all [n, hidden]."""


def draw_from(seed: bytes) -> Draw:
    """Numbers that follow from `seed`."""
    return np.random.default_rng(int.from_bytes(keccak(seed)[:8]))


def _scaled(draw: Draw, x: Rows, _: Rows) -> Rows:
    return x * np.float32(10.0 ** draw.uniform(-4, 4))


def _scaled_rows(draw: Draw, x: Rows, _: Rows) -> Rows:
    return x * (10.0 ** draw.uniform(-3, 3, (len(x), 1))).astype(np.float32)


def _outlier(draw: Draw, x: Rows, _: Rows) -> Rows:
    out = x.copy()
    out[:, draw.integers(x.shape[1])] *= np.float32(10.0 ** draw.uniform(1, 4))
    return out


def _spikes(draw: Draw, x: Rows, _: Rows) -> Rows:
    out = x.copy()
    out[:: draw.integers(1, 6), draw.integers(x.shape[1])] += np.float32(10.0 ** draw.uniform(2, 4))
    return out


def _sparse(draw: Draw, x: Rows, _: Rows) -> Rows:
    kept = draw.random(x.shape[1]) < draw.uniform(0.02, 0.9)
    return np.asarray(np.where(kept, x, 0), np.float32)


def _signs(draw: Draw, x: Rows, _: Rows) -> Rows:
    return x * np.where(draw.random((len(x), 1)) < 0.5, np.float32(-1), np.float32(1))


def _equal(draw: Draw, x: Rows, _: Rows) -> Rows:
    return np.repeat(x[draw.integers(len(x))][None], len(x), axis=0)


def _noise(draw: Draw, x: Rows, _: Rows) -> Rows:
    size = 10.0 ** draw.uniform(-6, -0.5) * np.abs(x).mean()
    return np.asarray(x + size * draw.standard_normal(x.shape), np.float32)


def _crossed(draw: Draw, x: Rows, other: Rows) -> Rows:
    return np.where(draw.random((len(x), 1)) < 0.5, x, other)


def _mixed(draw: Draw, x: Rows, other: Rows) -> Rows:
    share = np.float32(draw.random())
    return x * share + other * (1 - share)


MUTATIONS: tuple[Mutation, ...] = (
    *(_scaled, _scaled_rows, _outlier, _spikes, _sparse, _signs, _equal, _noise, _crossed, _mixed),
)


def child(draw: Draw, hop: DifferentiableHop, effort: Effort, x: Rows, other: Rows) -> Rows:
    """One mutation, descent among them where the hop has a layer to follow."""
    depths = len(hop.modules.layers) - 1
    kind = int(draw.integers(len(MUTATIONS) + (2 if depths else 0)))
    if kind < len(MUTATIONS):
        out = MUTATIONS[kind](draw, x, other)
    else:
        out = cancelling(hop, x, int(draw.integers(1, depths + 1)), effort.short)
    out = np.clip(np.where(np.isnan(out), 0, out), -LARGEST, LARGEST)
    return np.ascontiguousarray(out, np.float32)


def first_rows(lab: Lab, hop: int, gradient: DifferentiableHop, effort: Effort) -> list[tuple[str, Rows]]:
    """What evolution begins with: rows of a text, the fixed list of strained ones, and descents from the text."""
    text = np.asarray(lab.inputs(lab.jobs[0], hop)[: effort.rows], np.float32)
    found = [("text", text)]
    found += [(name, np.ascontiguousarray(x[: len(text)])) for name, x in strained(text, lab.manifest.vocab, len(text))]
    for depth in range(1, len(gradient.modules.layers)):
        for rate in (0.005, 0.02):
            found.append((f"descent, {depth} layer(s)", cancelling(gradient, text, depth, effort.descents, rate)))
    return found


def search_rows(lab: Lab, hop: int, effort: Effort, say: Progress) -> list[Strained]:
    """Every input of a later hop that was tried, in order.

    Parents are the eight most strained by the limits alone and the eight most strained after the verifier's second
    look: one aim leads to rows that are ill-conditioned, the other to rows on which that look would not help.
    """
    gradient = DifferentiableHop.load(lab.published, *RANGES[hop])
    say(f"hop {hop}: rows by descent")
    every = [measured(lab, hop, name, x) for name, x in first_rows(lab, hop, gradient, effort)]
    tried = [one for one in every if one is not None]
    for generation in range(effort.generations):
        worst = max(one.plain for one in tried)
        say(f"hop {hop}: {len(tried)} inputs, largest statistic {worst:.3g}; generation {generation + 1}")
        parents = _fittest(tried)
        for number in range(effort.children):
            draw = draw_from(f"strain {hop} {generation} {number}".encode())
            x, other = (parents[int(draw.integers(len(parents)))] for _ in range(2))
            name = x.name if x.name.startswith("evolved") else f"evolved from {x.name}"
            found = measured(lab, hop, name, child(draw, gradient, effort, x.given, other.given))
            if found is not None:
                tried.append(found)
    return tried


def _fittest(tried: Sequence[Strained], count: int = 8) -> list[Strained]:
    by_limits = sorted(tried, key=lambda one: one.plain, reverse=True)[:count]
    return by_limits + sorted(tried, key=lambda one: one.settled, reverse=True)[:count]


# --- token ids ---


def exchanged(draw: Draw, ids: Inputs, other: Inputs, vocab: int) -> Inputs:
    """Up to four ids drawn anew, or a run repeated, or a run of another input put in."""
    out = ids.copy()
    kind = int(draw.integers(4))
    start, length = int(draw.integers(len(ids))), int(draw.integers(1, len(ids) // 2 + 1))
    if kind < 2:
        places = draw.integers(len(ids), size=int(draw.integers(1, 5)))
        out[places] = draw.integers(vocab, size=len(places))
    elif kind == 2:
        out[start:] = np.resize(ids[start : start + length], len(ids) - start)
    else:
        out[start : start + length] = other[start : start + length]
    return np.asarray(out, np.int32)


def search_tokens(lab: Lab, effort: Effort, say: Progress) -> list[Strained]:
    """Every prompt that was tried, at every hop: the first reads its ids, the others what the honest one before sent.

    Parents are the eight prompts with the largest statistic at any hop.
    """
    starts = [np.asarray(lab.inputs(job, 0)[: effort.rows], np.int32) for job in lab.jobs[:4]]
    starts += [x for _, x in strained(starts[0], lab.manifest.vocab, effort.rows)]
    prompts: list[tuple[float, Inputs]] = []
    tried: list[Strained] = []

    def add(name: str, ids: Inputs) -> None:
        along: list[Strained] = []
        states: Inputs = ids
        for hop, engine in enumerate(lab.engines):
            one = measured(lab, hop, name, states)
            if one is not None:
                along.append(one)
            states = prefilled(engine, states)
        prompts.append((max((one.plain for one in along), default=0.0), ids))
        tried.extend(along)

    for ids in starts:
        add("tokens", ids)
    for generation in range(effort.tokens):
        prompts.sort(key=lambda pair: pair[0], reverse=True)
        say(f"{len(prompts)} prompts, largest statistic {prompts[0][0]:.3g}; generation {generation + 1}")
        parents = [ids for _, ids in prompts[:8]]
        for number in range(effort.children):
            draw = draw_from(f"tokens {generation} {number}".encode())
            ids, other = (parents[int(draw.integers(len(parents)))] for _ in range(2))
            add("evolved tokens", exchanged(draw, ids, other, lab.manifest.vocab))
    return tried


def search(lab: Lab, effort: Effort, say: Progress) -> list[Strained]:
    """Every input that was tried, of every hop."""
    found = search_tokens(lab, effort, say)
    for hop in range(1, len(RANGES)):
        found += search_rows(lab, hop, effort, say)
    return found


def in_bfloat16(lab: Lab, some: Sequence[Strained]) -> dict[str, Any]:
    """What nodes that declare bfloat16 make of strained rows of the later hops, as JSON: by the limits of their class
    alone, and as a verifier judges them."""
    worst = 0.0
    severe = slashed = failed = 0
    rows = [one for one in some if one.hop > 0]
    for hop in sorted({one.hop for one in rows}):
        engine, half = lab.engines[hop], load_executor(lab.published, *RANGES[hop], half=True)
        for one in (one for one in rows if one.hop == hop):
            given, ours, sent = one.given, prefilled(engine, one.given), prefilled(half, one.given)
            alone = compare(sent, ours, given, WireDtype.F32, HALF_LIMITS)
            seed = keccak(one.name.encode())
            found = compared(engine, given, sent, ours, given, WireDtype.F32, HALF_LIMITS, seed)
            worst = max(worst, alone.worst)
            severe += alone.outcome is Outcome.SEVERE
            slashed += found.outcome is Outcome.SEVERE
            failed += found.outcome is not Outcome.PASS
    return {
        "inputs": len(rows),
        "largest_by_the_limits_alone": worst,
        "severe_by_the_limits_alone": severe,
        "severe": slashed,
        "false_accusations": failed,
    }


def hardest(tried: Sequence[Strained], count: int = 4) -> list[Strained]:
    """Of each hop the `count` most strained by the limits alone and as many after the second look, for other machines
    to compute."""
    found: dict[int, Strained] = {}
    for hop in range(len(RANGES)):
        here = [one for one in tried if one.hop == hop]
        for one in _fittest(here, count):
            found[id(one)] = one
    return list(found.values())


def report(tried: Sequence[Strained]) -> dict[str, Any]:
    """What the search came to, as JSON. Inputs are judged in every one of the honest ways."""
    kinds = {"token ids": [one for one in tried if "tokens" in one.name]}
    for hop in range(1, len(RANGES)):
        kinds[f"rows of hop {hop}"] = [one for one in tried if one.hop == hop and "tokens" not in one.name]
    return {
        "inputs": len(tried),
        "positions": sum(len(one.given) for one in tried),
        "false_accusations": sum(one.accused > 0 for one in tried),
        "beyond_the_limits_alone": sum(one.plain > 1 for one in tried),
        "severe_by_the_limits_alone": sum(one.plain > 10 for one in tried),
        "by_kind": {
            name: {
                "inputs": len(some),
                "largest_by_the_limits_alone": max(one.plain for one in some),
                "input_of_the_largest": max(some, key=lambda one: one.plain).name,
                "largest_settled": max(one.settled for one in some),
                "false_accusations": sum(one.accused > 0 for one in some),
            }
            for name, some in kinds.items()
            if some
        },
    }

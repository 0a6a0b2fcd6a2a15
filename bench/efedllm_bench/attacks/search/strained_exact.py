"""The same strained inputs through two exact kernels (24): the same bits, or both refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.engine.exact.products import Kernel, exact_kernels
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor
from efedllm.errors import ModelError
from efedllm_bench.attacks.lab import RANGES, Lab, Progress, prefilled
from efedllm_bench.attacks.search.differentiable import DifferentiableHop
from efedllm_bench.attacks.search.strained_inputs import Effort, child, draw_from, exchanged, first_rows
from efedllm_bench.fleet.stress import strained
from efedllm_bench.fleet.worker import decode, pieces

Inputs = npt.NDArray[Any]

# Of a row's numbers: beside the largest and the smallest float32, and where squares leave its range.
_SCALES = (1e-44, 1e-38, 1e-30, 1e-19, 1e10, 1e19, 1e30, 3e38)


@dataclass
class ExactFindings:
    """`refused`: inputs by the code with which every kernel refused them; `computed`: those with an output, by hop."""

    kernels: tuple[str, str]
    inputs: int = 0
    positions: int = 0
    differing: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    computed: dict[int, list[tuple[str, Inputs]]] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kernels": list(self.kernels),
            "inputs": self.inputs,
            "positions": self.positions,
            "refused_by_both": dict(self.refused),
            "differing": self.differing,
        }


def two_kernels() -> tuple[Kernel, Kernel]:
    """The fastest kernel of this machine, and products of float64 with the steps between them in torch."""
    first = exact_kernels()[0]
    return first, Kernel.FLOAT64 if first is not Kernel.FLOAT64 else Kernel.FLOAT32


def outcome(engine: Executor, given: Inputs, way: str) -> bytes:
    """The bytes that an engine makes of an input, at once, in pieces or one position at a time; the code of its refusal
    where it refuses."""
    try:
        if way == "at once":
            return prefilled(engine, given).tobytes()
        return (pieces(engine, [given], 7) if way == "in pieces" else decode(engine, [given]))[0].tobytes()
    except ModelError as error:
        return error.code.encode()


def token_inputs(lab: Lab, effort: Effort) -> Iterator[tuple[str, Inputs]]:
    """Prompts of the text, the fixed list, and exchanges in them."""
    pool = [np.asarray(lab.inputs(job, 0)[: effort.rows], np.int32) for job in lab.jobs[:4]]
    pool += [ids for _, ids in strained(pool[0], lab.manifest.vocab, effort.rows)]
    for ids in pool:
        yield "tokens", ids
    for number in range(effort.tokens * effort.children):
        draw = draw_from(f"exact tokens {number}".encode())
        ids, other = (pool[int(draw.integers(len(pool)))] for _ in range(2))
        pool.append(exchanged(draw, ids, other, lab.manifest.vocab))
        yield "exchanged tokens", pool[-1]


def row_inputs(lab: Lab, hop: int, effort: Effort) -> Iterator[tuple[str, Inputs]]:
    """Rows where the float search begins, at every scale of float32, and mutations of mutations."""
    gradient = DifferentiableHop.load(lab.published, *RANGES[hop])
    pool = first_rows(lab, hop, gradient, effort)
    for name, x in pool[:1] + pool[-1:]:
        yield from ((f"{name} x {scale:g}", scaled(x, scale)) for scale in _SCALES)
    yield from pool
    for number in range(effort.generations * effort.children):
        draw = draw_from(f"exact {hop} {number}".encode())
        (name, x), (_, other) = (pool[int(draw.integers(len(pool)))] for _ in range(2))
        name = name if name.startswith("mutated") else f"mutated {name}"
        pool.append((name, child(draw, gradient, effort, x, other)))
        yield pool[-1]


def scaled(x: Inputs, scale: float) -> Inputs:
    """Rows whose largest number is `scale`."""
    wide = x.astype(np.float64)
    return np.asarray(wide * (scale / np.abs(wide).max()), np.float32)


def search_exact(lab: Lab, effort: Effort, say: Progress) -> ExactFindings:
    """Every input through both kernels; the faster one in three ways."""
    kernels = two_kernels()
    findings = ExactFindings((str(kernels[0]), str(kernels[1])))
    for hop, layers in enumerate(RANGES):
        first, second = (ExactShardEngine.load(lab.published, *layers, kernel=kernel) for kernel in kernels)
        say(f"exact hop {hop}: {findings.inputs} inputs so far, through {kernels[0]} and {kernels[1]}")
        for name, given in token_inputs(lab, effort) if hop == 0 else row_inputs(lab, hop, effort):
            findings.inputs += 1
            findings.positions += len(given)
            ways = ((first, "at once"), (second, "at once"), (first, "in pieces"), (first, "one by one"))
            found = {outcome(engine, given, way) for engine, way in ways}
            if len(found) > 1:
                findings.differing.append(f"hop {hop}: {name}")
            elif len(made := found.pop()) != 4 * len(given) * lab.hidden:
                findings.refused[made.decode()] += 1
            else:
                findings.computed.setdefault(hop, []).append((name, given))
    return findings

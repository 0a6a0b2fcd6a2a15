"""One honest machine of the fleet, as a process: its instruction set and threads are set before torch is loaded.

`python -m efedllm_bench.fleet.worker JOB.json` reads the models and inputs that JOB.json names and writes one
.npz of outputs. `efedllm_bench.fleet.machines` starts it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Inputs = npt.NDArray[Any]

CHUNK = 37
# Sequences side by side in a mixed batch.
SIDE_BY_SIDE = 4


def prefill(executor: Any, given: list[Inputs]) -> list[Rows]:
    """Each sequence at once."""
    return [_step(executor, [(executor.new_sequence(), x)])[0] for x in given]


def pieces(executor: Any, given: list[Inputs], size: int) -> list[Rows]:
    """Each sequence in pieces of `size` positions."""
    found = []
    for x in given:
        sequence = executor.new_sequence()
        parts = [_step(executor, [(sequence, x[at : at + size])])[0] for at in range(0, len(x), size)]
        found.append(np.concatenate(parts))
    return found


def chunked(executor: Any, given: list[Inputs]) -> list[Rows]:
    """Each sequence in pieces of CHUNK positions."""
    return pieces(executor, given, CHUNK)


def decode(executor: Any, given: list[Inputs]) -> list[Rows]:
    """A prefill of a third, then one position at a time."""
    found = []
    for x in given:
        sequence = executor.new_sequence()
        split = max(1, len(x) // 3)
        parts = [_step(executor, [(sequence, x[:split])])[0]]
        parts += [_step(executor, [(sequence, x[at : at + 1])])[0] for at in range(split, len(x))]
        found.append(np.concatenate(parts))
    return found


def mixed(executor: Any, given: list[Inputs]) -> list[Rows]:
    """Several sequences in one pass, each in pieces of its own size: prefill and decode side by side."""
    found: list[Rows] = []
    for start in range(0, len(given), SIDE_BY_SIDE):
        group = given[start : start + SIDE_BY_SIDE]
        sequences = [executor.new_sequence() for _ in group]
        parts: list[list[Rows]] = [[] for _ in group]
        at = [0] * len(group)
        while any(done < len(x) for done, x in zip(at, group, strict=True)):
            batch, members = [], []
            for i, x in enumerate(group):
                # 11, 23, 35 … positions at once, the first sequence one by one from its middle on.
                n = 1 if i == 0 and at[0] >= len(group[0]) // 2 else 11 + 12 * i
                if at[i] < len(x):
                    batch.append((sequences[i], x[at[i] : at[i] + n]))
                    members.append(i)
                    at[i] += n
            for i, rows in zip(members, _step(executor, batch), strict=True):
                parts[i].append(rows)
        found += [np.concatenate(rows) for rows in parts]
    return found


def batched(executor: Any, given: list[Inputs]) -> list[Rows]:
    """Several whole sequences in one pass."""
    found: list[Rows] = []
    for start in range(0, len(given), SIDE_BY_SIDE):
        found += _step(executor, [(executor.new_sequence(), x) for x in given[start : start + SIDE_BY_SIDE]])
    return found


MODES = {"prefill": prefill, "chunked": chunked, "decode": decode, "mixed": mixed}
TEXT_MODES = {"prefill": prefill, "batched": batched}
"""What an encoder can do: a text goes through it whole."""


def _step(executor: Any, batch: list[tuple[Any, Inputs]]) -> list[Rows]:
    from efedllm.engine.protocol import StepItem

    outputs: list[Rows] = executor.step([StepItem(sequence, np.ascontiguousarray(x)) for sequence, x in batch])
    return outputs


@contextmanager
def textbook_attention() -> Iterator[None]:
    """Within it the textbook's attention replaces torch's fused one, as a node with another library would have it."""
    import torch
    from torch import Tensor

    from efedllm.engine import attention, encoder

    def plain(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
        if is_causal:
            n = query.shape[-2]
            attn_mask = torch.ones(n, n, dtype=torch.bool).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        return torch.softmax(scores, dim=-1) @ value

    fused = attention.scaled_dot_product_attention  # type: ignore[attr-defined]
    for engine in (attention, encoder):
        engine.scaled_dot_product_attention = plain  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for engine in (attention, encoder):
            engine.scaled_dot_product_attention = fused  # type: ignore[attr-defined]


def main(path: Path) -> None:
    """Run one job file."""
    task = json.loads(path.read_text())
    import torch

    torch.set_num_threads(task["threads"])
    with textbook_attention() if task["eager"] else nullcontext():
        _compute(task)


def _compute(task: dict[str, Any]) -> None:
    from efedllm.engine.select import load_executor

    ways = MODES | TEXT_MODES
    out: dict[str, Rows] = {}
    with np.load(task["inputs"]) as stored:
        for hop, (lo, hi) in enumerate(task["ranges"]):
            engine = load_executor(Path(task["published"]), lo, hi, threads=task["threads"])
            for name in task["sets"]:
                keys = sorted(key for key in stored.files if key.startswith(f"{name}/{hop}/"))
                for mode in task["modes"]:
                    if [name, mode] in task["without"]:
                        continue
                    taken = keys[: task["limits"].get(mode, len(keys))]
                    for key, rows in zip(taken, ways[mode](engine, [stored[key] for key in taken]), strict=True):
                        out[f"{mode}/{key}"] = rows
    np.savez(task["out"], **out)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

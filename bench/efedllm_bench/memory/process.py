"""One engine in a process of its own: how much memory it takes at most, and what it computes. Prints one JSON object.

usage: python -m efedllm_bench.memory.process OPTIONS, where OPTIONS is a JSON object with the fields of `Options`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efedllm.engine.protocol import Executor, StepItem
from efedllm.models.manifest import Manifest


@dataclass(frozen=True)
class Options:
    """`warm`: directory of a tiny model of the same family and form, which brings in the libraries before the baseline
    is read. `ram`: bytes, None for no budget.
    """

    directory: str
    warm: str
    exact: bool
    lo: int
    hi: int
    ram: int | None
    prompt: int
    tokens: int


def main(options: Options) -> dict[str, Any]:
    """Memory in bytes, read from /proc: the resident set before the model, and its peak from then on."""
    warm = Path(options.warm)
    _use(_load(options, warm, 0, Manifest.load(warm).layers, None), 40, 2)
    _reset_peak()
    baseline = memory("VmRSS")
    start = time.perf_counter()
    engine = _load(options, Path(options.directory), options.lo, options.hi, options.ram)
    loaded = time.perf_counter() - start
    digest, rate = _use(engine, options.prompt, options.tokens)
    report = getattr(engine, "tiers", None)
    return {
        "baseline": baseline,
        "peak": memory("VmHWM"),
        "weight_bytes": engine.weight_bytes,
        "load_seconds": round(loaded, 3),
        "tokens_per_second": round(rate, 3),
        "sha256": digest,
        "tiers": None if report is None else asdict(report),
    }


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _load(options: Options, directory: Path, lo: int, hi: int, ram: int | None) -> Executor:
    if options.exact:
        from efedllm.engine.exact.shard import ExactShardEngine

        return ExactShardEngine.load(directory, lo, hi, ram=ram)
    from efedllm.engine.shard import ShardEngine

    return ShardEngine.load(directory, lo, hi, ram=ram)


def _use(engine: Executor, prompt: int, tokens: int) -> tuple[str, float]:
    """sha256 of all states and logits, and decoded tokens per second."""
    digest = hashlib.sha256()
    sequence = engine.new_sequence()
    start = 0.0
    for place, count in enumerate([prompt, *[1] * tokens]):
        if place == 1:
            start = time.perf_counter()
        digest.update(engine.step([StepItem(sequence, inputs(engine, place, count))])[0].tobytes())
        if engine.has_head:
            states = np.linspace(-1, 1, engine.hidden, dtype=np.float32)[None]
            digest.update(engine.logits(states).tobytes())
    return digest.hexdigest(), tokens / (time.perf_counter() - start)


def inputs(engine: Executor, seed: int, count: int) -> Any:
    """Fixed ids or states."""
    numbers = (np.arange(count * (1 if engine.has_embedding else engine.hidden)) * 7919 + seed * 104729) % 65521
    if engine.has_embedding:
        return (numbers % engine.vocab).astype(np.int32)
    return (numbers / 32760.5 - 1).astype(np.float32).reshape(count, engine.hidden)


if __name__ == "__main__":
    print(json.dumps(main(Options(**json.loads(sys.argv[1])))))

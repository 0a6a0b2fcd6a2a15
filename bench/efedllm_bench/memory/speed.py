"""Decode speed against the bytes that a token reads, weights cold, the bandwidth measured in the same run.

All times are CPU time of the one thread that computes: on an idle machine the same as time on the clock, on a busy one
without the waiting. What others take of the memory's bandwidth still shows, in the limit as in the forms.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.protocol import Sequence as TokenSequence
from efedllm.engine.shard import ShardEngine
from efedllm.models.manifest import Manifest
from efedllm_bench.memory.process import inputs
from efedllm_bench.memory.synthetic import Form, LlamaShape, publish_synthetic

Say = Callable[[str], None]

SHAPE = LlamaShape(2048, 5632, 6, 32, 4, 128, 2048)
"""Six layers of a model of 1.1 billion parameters; a small vocabulary, so that the layers are what is timed."""

CONTEXT = 32
_COLD = 8  # times the last-level cache
_FORMS: tuple[tuple[str, Form, float], ...] = (
    ("fp32", "fp32", 1.0),
    ("int8", "int8", 1.0),
    ("lowrank int8, 60 % of the parameters", "lowrank", 0.6),
    ("lowrank int8, 30 % of the parameters", "lowrank", 0.3),
    ("int4, groups of 64", "int4", 1.0),
    ("int4, groups of 64, rank 64", "int4+rank", 1.0),
)


@dataclass(frozen=True)
class Speed:
    """`bytes`: what one token reads, weights as held in memory and cache. Times and rates are of the
    fastest turn, which other programs disturbed least; the median is beside it. `of_limit`: of the measured bandwidth.
    """

    form: str
    profile: str
    nodes: int
    bytes: int
    saved_of_bf16: float
    ms_per_token: float
    median_ms: float
    tokens_per_second: float
    faster_than_bf16: float
    of_limit: float


class Cold:
    """Evicts every cache by reading a buffer of 8 times the last level, and measures the machine's bandwidth by it."""

    def __init__(self) -> None:
        self.cache = last_level()
        self._buffer = torch.ones(_COLD * self.cache // 8, dtype=torch.int64)
        self._rates: list[float] = []

    def evict(self) -> None:
        """Read the whole buffer."""
        start = time.thread_time()
        self._buffer.sum()
        self._rates.append(self._buffer.nbytes / (time.thread_time() - start))

    @property
    def bandwidth(self) -> float:
        """Bytes per second, the best of all reads: a limit, not a mean."""
        return max(self._rates)


def last_level() -> int:
    """Bytes of the largest cache; 32 MiB where the system does not say."""
    sizes = [
        int(match.group(1)) * {"K": 2**10, "M": 2**20}[match.group(2)]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (match := re.fullmatch(r"(\d+)([KM])", path.read_text().strip()))
    ]
    return max(sizes, default=32 << 20)


class _Chain:
    """Engines that pass states on, as nodes do."""

    def __init__(self, engines: Sequence[Executor]) -> None:
        self._engines = list(engines)
        self._sequences: list[TokenSequence] = []
        self.restart()

    def restart(self) -> None:
        """A sequence of CONTEXT positions."""
        self._sequences = [engine.new_sequence() for engine in self._engines]
        self.feed(inputs(self._engines[0], 0, CONTEXT))

    def feed(self, data: Any) -> None:
        for engine, sequence in zip(self._engines, self._sequences, strict=True):
            data = engine.step([StepItem(sequence, data)])[0]

    def decode(self) -> None:
        self.feed(np.zeros(1, np.int32))

    @property
    def bytes(self) -> int:
        """Of the layers, without the tables that a token reads one row of, and of the cache."""
        ends = sum(_ends(engine) for engine in self._engines)
        kept = sum(sequence.nbytes for sequence in self._sequences)
        return sum(engine.weight_bytes for engine in self._engines) - ends + kept


def _ends(engine: Executor) -> int:
    modules: Any = engine._modules  # type: ignore[attr-defined]
    return sum(t.nbytes for t in _tensors(modules.embed)) + sum(t.nbytes for t in _tensors(modules.head))


def _tensors(part: Any) -> list[torch.Tensor]:
    if part is None:
        return []
    if isinstance(part, torch.Tensor):
        return [part]
    return list(part.held) if hasattr(part, "held") else [*part.parameters(), *part.buffers()]


class _Bf16:
    """The same layers in transformers, dense bfloat16: what serving starts from."""

    def __init__(self) -> None:
        config = SHAPE.config()
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        self._model = model.to_empty(device="cpu").to(torch.bfloat16).eval()
        for parameter in self._model.parameters():
            parameter.data.normal_(0, 0.02)
        self._model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
        self._cache: Any = None
        self.restart()

    def restart(self) -> None:
        with torch.inference_mode():
            ids = (torch.arange(CONTEXT) % 96)[None]
            self._cache = self._model.model(ids, use_cache=True).past_key_values

    def decode(self) -> None:
        with torch.inference_mode():
            self._model.model(torch.zeros(1, 1, dtype=torch.int64), past_key_values=self._cache, use_cache=True)

    @property
    def bytes(self) -> int:
        layers: int = sum(p.nbytes for p in self._model.model.layers.parameters())
        return layers + 2 * 2 * SHAPE.layers * SHAPE.kv_heads * 64 * CONTEXT


def measure(turns: int, say: Say) -> dict[str, Any]:
    """Every form in turn, `turns` times, one token each after the caches were emptied."""
    torch.set_num_threads(1)
    cold = Cold()
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-memory-") as folder:
        subjects: dict[tuple[str, str, int], _Chain | _Bf16] = {("bf16, transformers", "float", 1): _Bf16()}
        for name, form, keep in _FORMS:
            say(f"writing and loading {SHAPE.layers} layers of {name}")
            directory = Path(folder) / f"{form}-{keep}"
            publish_synthetic(directory, SHAPE, form, keep)
            nodes = (1, 2, 4) if form == "int4+rank" else (1,)
            for count in nodes:
                subjects[name, "float", count] = _chain(directory, ShardEngine, count)
            if form != "fp32":
                subjects[name, "exact", 1] = _chain(directory, ExactShardEngine, 1)
        times: dict[tuple[str, str, int], list[float]] = {key: [] for key in subjects}
        for turn in range(turns + 1):
            say(f"turn {turn} of {turns}")
            for key, subject in subjects.items():
                cold.evict()
                start = time.thread_time()
                subject.decode()
                if turn:
                    times[key].append(time.thread_time() - start)
        figures = [_speed(key, subjects[key], times, cold) for key in subjects]
        base = next(f for f in figures if f.form.startswith("bf16"))
        return {
            "shape": asdict(SHAPE),
            "context": CONTEXT,
            "last_level_cache_bytes": cold.cache,
            "clock": "CPU time of the computing thread",
            "bandwidth_gb_per_s": round(cold.bandwidth / 1e9, 2),
            "forms": [asdict(f) | _relative(f, base) for f in figures],
        }


def _chain(directory: Path, kind: type[ShardEngine] | type[ExactShardEngine], parts: int) -> _Chain:
    layers = Manifest.load(directory).layers
    bounds = [layers * i // parts for i in range(parts + 1)]
    return _Chain([kind.load(directory, lo, hi) for lo, hi in pairwise(bounds)])


def _speed(
    key: tuple[str, str, int],
    subject: _Chain | _Bf16,
    times: dict[tuple[str, str, int], list[float]],
    cold: Cold,
) -> Speed:
    seconds = min(times[key])
    return Speed(
        form=key[0],
        profile=key[1],
        nodes=key[2],
        bytes=subject.bytes,
        saved_of_bf16=0.0,
        ms_per_token=round(seconds * 1e3, 2),
        median_ms=round(statistics.median(times[key]) * 1e3, 2),
        tokens_per_second=round(1 / seconds, 2),
        faster_than_bf16=1.0,
        of_limit=round(subject.bytes / seconds / cold.bandwidth, 3),
    )


def _relative(figure: Speed, base: Speed) -> dict[str, float]:
    return {
        "saved_of_bf16": round(1 - figure.bytes / base.bytes, 3),
        "faster_than_bf16": round(base.ms_per_token / figure.ms_per_token, 2),
    }


_BLOCK_SHAPES = (LlamaShape(2048, 5632, 2, 32, 4, 128, 2048), LlamaShape(256, 704, 8, 4, 2, 128, 2048))
_BLOCKS = (32, 64, 96, 128, 256, 1024)


def blocks(turns: int, say: Say) -> dict[str, Any]:
    """Prefill of 1024 tokens through 2 layers of width 2048 and 8 of width 256, whole and in blocks of tokens; the
    fastest of `turns`, after other memory was read: a prefill seldom follows one of the same shape.
    """
    torch.set_num_threads(1)
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-memory-") as folder:
        for shape in _BLOCK_SHAPES:
            for form, keep in (("lowrank", 0.3), ("int8", 1.0)):
                directory = Path(folder) / f"{form}-{shape.hidden}"
                publish_synthetic(directory, shape, form, keep)  # type: ignore[arg-type]
                for profile, kind in (("float", ShardEngine), ("exact", ExactShardEngine)):
                    name = f"{form}, {profile}, width {shape.hidden}"
                    say(f"prefill in blocks: {name}")
                    found[name] = _prefills(kind, directory, shape.layers, turns)
    return {"tokens": 1024, "layers": {str(s.hidden): s.layers for s in _BLOCK_SHAPES}, "ms_by_block": found}


def _prefills(
    kind: type[ShardEngine] | type[ExactShardEngine], directory: Path, layers: int, turns: int
) -> dict[str, int]:
    """Milliseconds of 1024 tokens by the size of a block."""
    engines = {size: kind.load(directory, 0, layers, block=size) for size in _BLOCKS}
    times: dict[int, list[float]] = {size: [] for size in _BLOCKS}
    other = torch.ones(4 << 20)
    for engine in engines.values():
        engine.step([StepItem(engine.new_sequence(), inputs(engine, 1, 32))])
    for _ in range(turns):
        for size, engine in engines.items():
            rows = inputs(engine, 1, 1024)
            other.sum()
            start = time.thread_time()
            engine.step([StepItem(engine.new_sequence(), rows)])
            times[size].append(time.thread_time() - start)
    return {str(size): round(min(values) * 1e3) for size, values in times.items()}

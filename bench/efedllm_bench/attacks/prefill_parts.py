"""Where the time of one prefill in the exact profile goes: an engine whose layers keep time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy.typing as npt
from torch import Tensor

from efedllm.engine.exact.layer import ExactLayer
from efedllm.engine.exact.linear import Linears
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.exact.steps import Steps
from efedllm.engine.protocol import StepItem

_STEPS = {
    "norm": "norms",
    "quantized": "RoPE, quantising heads",
    "attend": "attention",
    "gated": "activation",
    "gelu": "activation",
    "add": "residual sums",
    "tap": "taps",
}
PRODUCTS = "integer products, quantising their inputs"
REST = "the rest of the pass"


class PartClock:
    """Seconds of this thread's processor time by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time counts under `name`."""

        def run(*given: Any) -> Any:
            started = time.thread_time()
            result = call(*given)
            self.seconds[name] += time.thread_time() - started
            return result

        return run


class _TimedSteps:
    def __init__(self, steps: Steps, clock: PartClock) -> None:
        for method, name in _STEPS.items():
            setattr(self, method, clock.timed(name, getattr(steps, method)))


class _TimedLinears:
    def __init__(self, linears: Linears, clock: PartClock) -> None:
        self._run = clock.timed(PRODUCTS, linears)

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self._run(x))


def _timed_layer(layer: ExactLayer, clock: PartClock) -> ExactLayer:
    def linears(one: Linears) -> Linears:
        return cast(Linears, _TimedLinears(one, clock))

    attention, mlp = layer.attention, layer.mlp
    return replace(
        layer,
        steps=cast(Steps, _TimedSteps(layer.steps, clock)),
        attention=replace(attention, qkv=linears(attention.qkv), out=linears(attention.out)),
        mlp=replace(mlp, up=linears(mlp.up), down=linears(mlp.down)),
    )


def timed_engine(engine: ExactShardEngine, clock: PartClock) -> ExactShardEngine:
    """An engine over the same weights that keeps time."""
    layers = tuple(_timed_layer(layer, clock) for layer in engine._modules.layers)
    modules = replace(engine._modules, layers=layers)
    return ExactShardEngine(engine._shape, modules, engine._tables, engine.kernel, engine._root)


def prefill_parts(engine: ExactShardEngine, inputs: npt.NDArray[Any], turns: int) -> dict[str, float]:
    """Seconds of the parts of one prefill with taps, in the fastest of the turns."""
    clock = PartClock()
    timed = timed_engine(engine, clock)
    best: dict[str, float] = {}
    for _ in range(turns):
        clock.seconds.clear()
        started = time.thread_time()
        timed.step_with_taps([StepItem(timed.new_sequence(), inputs)])
        whole = time.thread_time() - started
        found = {**clock.seconds, REST: whole - sum(clock.seconds.values())}
        if not best or whole < sum(best.values()):
            best = found
    return best

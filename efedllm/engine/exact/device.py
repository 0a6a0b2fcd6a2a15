"""Whether a device that is not the CPU rounds as the exact profile says: asked before anything is computed on it.

IEEE 754 says what + - * / sqrt and the conversions give, but drivers, libraries and settings of the environment may
trade that for speed. A node would be slashed for it, so it is refused at start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.exact.products import inexact
from efedllm.engine.protocol import Executor, Float32, StepItem

_COUNT = 4096
_POSITIONS = 48
_DECODED = 3

Numbers = npt.NDArray[Any]


def check_rounding(device: str) -> None:
    """Raises ModelError "inexact-device" where the element-wise steps of `device` differ from the CPU's.

    Numbers of many magnitudes, from sha256, are added, multiplied, divided, rounded and converted in float32 and
    float64, and their square roots taken. The CPU's own are what the profile is made of.
    """
    if torch.device(device).type == "cpu":
        return
    for kind in (np.float64, np.float32):
        a, b = _numbers(b"a", kind), _numbers(b"b", kind)
        near, far = (a, b), [torch.from_numpy(x).to(device) for x in (a, b)]
        for name, wanted, computed in _STEPS:
            want, got = wanted(*near), computed(*far).cpu().numpy()
            if want.dtype != got.dtype or want.tobytes() != got.tobytes():
                raise inexact(device, f"its {kind.__name__} {name} is rounded otherwise")


def same_bits(left: Executor, right: Executor) -> bool:
    """Whether two engines of one range give the same bytes: a prefill, then positions one by one, and the logits where
    they have a head. Inputs are made of sha256."""
    outputs = []
    for engine in (left, right):
        inputs = _inputs(engine)
        sequence = engine.new_sequence()
        cuts = [0, *range(len(inputs) - _DECODED, len(inputs) + 1)]
        states: list[Float32] = [
            engine.step([StepItem(sequence, inputs[start:end])])[0] for start, end in pairwise(cuts)
        ]
        if engine.has_head:
            states += [engine.logits(part) for part in tuple(states)]
        outputs.append(b"".join(part.tobytes() for part in states))
    return outputs[0] == outputs[1]


def _inputs(engine: Executor) -> npt.NDArray[Any]:
    count = min(_POSITIONS, engine.max_positions)
    if engine.has_embedding:
        return (_words(b"ids", count) % engine.vocab).astype(np.int32)
    numbers = _words(b"states", count * engine.hidden).astype(np.int64) % 4001 - 2000
    return (numbers / 500).astype(np.float32).reshape(count, engine.hidden)


def _words(label: bytes, count: int) -> npt.NDArray[np.uint32]:
    data = b"".join(hashlib.sha256(label + i.to_bytes(4, "big")).digest() for i in range(-(-count // 8)))
    return np.frombuffer(data, ">u4")[:count].astype(np.uint32)


def _numbers(label: bytes, kind: type[np.floating[Any]]) -> Numbers:
    """Of both signs, magnitudes 1e-9 to 1e9."""
    words = _words(label, 3 * _COUNT).astype(np.float64).reshape(3, _COUNT)
    numbers: Numbers = (words[0] / 2**31 - 1) * (1 + words[1] * 2.0**-51) * 10.0 ** (words[2] % 19 - 9)
    return numbers.astype(kind)


_STEPS: tuple[tuple[str, Callable[..., Numbers], Callable[..., Tensor]], ...] = (
    ("addition", lambda a, b: a + b, lambda a, b: a + b),
    ("subtraction", lambda a, b: a - b, lambda a, b: a - b),
    ("multiplication", lambda a, b: a * b, lambda a, b: a * b),
    ("division", lambda a, b: a / b, lambda a, b: a / b),
    ("square root", lambda a, _: np.sqrt(np.abs(a)), lambda a, _: a.abs().sqrt()),
    ("rounding to an integer", lambda a, b: np.rint(a * b), lambda a, b: (a * b).round_()),
    ("conversion to float32", lambda a, _: a.astype(np.float32), lambda a, _: a.float()),
    ("sum of a product", lambda a, b: a * b + a, lambda a, b: (a * b).add_(a)),
)

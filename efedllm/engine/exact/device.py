"""Whether a device that is not the CPU rounds as the exact profile says: asked before anything is computed on it.

IEEE 754 says what + - * / sqrt and the conversions give, but drivers, libraries and settings of the environment may
trade that for speed. A node would be slashed for it, so it is refused at start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.engine.compare import words
from efedllm.engine.exact.products import inexact

_COUNT = 4096

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


def _numbers(label: bytes, kind: type[np.floating[Any]]) -> Numbers:
    """Of both signs, magnitudes 1e-9 to 1e9."""
    sign, tail, size = words(label, 3 * _COUNT).astype(np.float64).reshape(3, _COUNT)
    numbers: Numbers = (sign / 2**31 - 1) * (1 + tail * 2.0**-51) * 10.0 ** (size % 19 - 9)
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

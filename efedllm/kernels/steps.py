"""The compiled steps of the exact profile between its products (steps.c), through ctypes. Calls release the GIL.

Optional like the products: `steps_library` is None where they were not built or EFEDLLM_NATIVE=0.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from efedllm.kernels.native import SWITCH
from efedllm.kernels.stamp import open_library

LIBRARY = Path(__file__).with_name("libsteps.so")
"""Where the build puts it, on every platform."""

MOST_DIM = 512
"""Longest attention head that steps.c takes."""


class CCached(ctypes.Structure):
    """`cached` of steps.c; addresses of memory that the caller keeps alive, strides in elements."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("kv_heads", c_int64),
        ("positions", c_int64),
        ("dim", c_int64),
        ("head_stride", c_int64),
        ("scale_stride", c_int64),
    )


@dataclass(frozen=True, eq=False)
class StepsLibrary:
    """Functions of steps.c. They check nothing: shapes, strides and sizes are the caller's business."""

    norm: Any
    heads: Any
    attend_room: Any
    attend: Any
    gated: Any
    gelu: Any
    add: Any
    canonical: Any
    tap: Any
    sample_room: Any
    sample: Any
    highest: Any


def load_steps(path: Path) -> StepsLibrary:
    """Raises OSError when `path` cannot be loaded, or was built from other sources."""
    handle = open_library(path)

    def function(name: str, *arguments: Any, result: Any = None) -> Any:
        found = getattr(handle, name)
        found.argtypes, found.restype = arguments, result
        return found

    p, i, d = c_void_p, c_int64, c_double
    return StepsLibrary(
        norm=function("efl_norm", p, i, i, p, p, d, p),
        heads=function("efl_heads", p, i, i, i, i, p, p, d, p, p, p, p),
        attend_room=function("efl_attend_room", p, result=i),
        attend=function("efl_attend", p, p, i, p, i, d, i, i, i, p, p),
        gated=function("efl_gated", p, i, i, p),
        gelu=function("efl_gelu", p, i, p),
        add=function("efl_add", p, p, i, p),
        canonical=function("efl_canonical", p, i, p, result=c_int),
        tap=function("efl_tap", p, i, i, p, i, p),
        sample_room=function("efl_sample_room", i, result=i),
        sample=function("efl_sample", p, i, i, i, i, i, p, p, p),
        highest=function("efl_highest", p, i, i, i, p, p),
    )


@cache
def steps_library() -> StepsLibrary | None:
    """The library of this installation, or None."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    try:
        return load_steps(LIBRARY)
    except OSError as error:
        structlog.get_logger("efedllm.kernels").info(
            "no native steps: computing with torch, slower", reason=str(error).splitlines()[0]
        )
        return None

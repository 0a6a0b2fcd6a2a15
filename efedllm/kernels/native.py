"""The compiled library of products: finding it, and its functions through ctypes. Calls release the GIL.

The library is optional: without a compiler at installation, or with EFEDLLM_NATIVE=0, `library` is None and the engines
compute with torch. EFEDLLM_NATIVE may also name a variant, which is then the only one.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from efedllm.errors import ConfigError
from efedllm.kernels.stamp import open_library

LIBRARY = Path(__file__).with_name("libproducts.so")
"""Where the build puts it, on every platform."""

SWITCH = "EFEDLLM_NATIVE"


class Variant(IntEnum):
    """Instruction sets, by their numbers in products/products.c."""

    PLAIN = 0
    AVX2 = 1
    AVX512_VNNI = 2
    NEON = 3


class CMatrix(ctypes.Structure):
    """`matrix` of products/products.c; addresses of memory that the caller keeps alive."""

    _fields_ = (
        ("tiles", c_void_p),
        ("mult", c_void_p),
        ("scale", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group", c_int64),
        ("bits", c_int64),
    )


class CLinear(ctypes.Structure):
    """`linear` of products/products.c."""

    _fields_ = (("base", CMatrix), ("v", CMatrix), ("u", CMatrix), ("bias", c_void_p))


_PRODUCTS = [c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int, c_int]


@dataclass(frozen=True, eq=False)
class Library:
    """Functions of products/products.c. They check nothing: shapes, strides and sizes are the caller's business."""

    tile_bytes: Any
    tile: Any
    rows: Any
    workspace: Any
    times: Any
    exact: Any
    floats: Any
    expand: Any
    peak: Any
    variants: tuple[Variant, ...]
    """What this machine runs, fastest first."""


def load_library(path: Path) -> Library:
    """Raises OSError when `path` cannot be loaded, or was built from other sources."""
    handle = open_library(path)

    def function(name: str, arguments: list[Any], result: Any = None) -> Any:
        found = getattr(handle, name)
        found.argtypes, found.restype = arguments, result
        return found

    supported = function("efl_supported", [c_int], c_int)
    return Library(
        tile_bytes=function("efl_tile_bytes", [c_void_p], c_int64),
        tile=function("efl_tile", [c_void_p, c_void_p, c_int64, c_void_p]),
        rows=function("efl_rows", [c_void_p, c_void_p, c_int64, c_void_p]),
        workspace=function("efl_workspace", [c_void_p, c_int64, c_int64, c_int64], c_int64),
        times=function("efl_times", [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int, c_int]),
        exact=function("efl_exact", _PRODUCTS),
        floats=function("efl_floats", _PRODUCTS),
        expand=function("efl_expand", [c_void_p, c_int64, c_int64, c_void_p, c_int]),
        peak=function("efl_peak", [c_int, c_int64], c_int64),
        variants=tuple(v for v in sorted(Variant, reverse=True) if supported(v)),
    )


@cache
def library() -> Library | None:
    """The library of this installation, or None, which one line of the log explains.

    Raises ConfigError "bad-option" when EFEDLLM_NATIVE names a variant that this machine does not run.
    """
    log = structlog.get_logger("efedllm.kernels")
    wanted = os.environ.get(SWITCH, "1")
    if wanted == "0":
        log.info("native kernels switched off: computing with torch", by=f"{SWITCH}=0")
        return None
    try:
        found = load_library(LIBRARY)
    except OSError as error:
        log.info("no native kernels: computing with torch, slower", reason=str(error).splitlines()[0])
        return None
    if wanted == "1":
        return found
    chosen = tuple(v for v in found.variants if v.name.lower() == wanted.lower())
    if not chosen:
        raise ConfigError(
            "bad-option",
            f"{SWITCH}={wanted} is no instruction set of this machine.",
            f"Use 0, 1 or one of: {', '.join(v.name.lower() for v in found.variants)}.",
        )
    return replace(found, variants=chosen)

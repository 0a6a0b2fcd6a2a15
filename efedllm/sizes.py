"""Sizes of memory that people type."""

from __future__ import annotations

import re
from decimal import Decimal

from efedllm.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?$")


def parse_size(text: str) -> int:
    """Bytes of a size such as "2GB", "512MiB" or "1.5 GB", rounded down. Raises ConfigError "bad-size"."""
    match = _SIZE.match(text.strip().upper())
    size = 0 if match is None else int(Decimal(match.group(1)) * _UNITS[match.group(2) or ""])
    if size < 1:
        raise ConfigError("bad-size", f"{text!r} is no size of memory.", "Write a number and a unit, for example 2GB.")
    return size

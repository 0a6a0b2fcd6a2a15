"""The processor that figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """Its model as Linux names it; where there is no /proc/cpuinfo, what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())

"""`efedllm bench memory`: everything about bytes moved and held, as JSON and plots."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efedllm.errors import EfedError
from efedllm_bench.memory import nodes, plots, speed, tables, tiers
from efedllm_bench.processor import processor_name

PARTS = ("traffic", "speed", "nodes", "tiers", "blocks")


def run(parts: tuple[str, ...], turns: int, model: Path, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure `parts` and write memory-PART.json and its plot below `out`. Raises EfedError."""
    out.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "traffic": traffic_tables,
        "speed": lambda: speed.measure(turns, say),
        "nodes": lambda: nodes.measure(model, say),
        "tiers": lambda: tiers.measure(say),
        "blocks": lambda: speed.blocks(turns, say),
    }
    found: dict[str, Any] = {}
    for part in parts:
        say(part)
        found[part] = {"machine": machine()} | makers[part]()
        (out / f"memory-{part}.json").write_text(_text(found[part]))
        plots.draw(part, found[part], out / f"memory-{part}.png")
    return found


def traffic_tables() -> dict[str, Any]:
    """Traffic by formula, and the formulas against the counting products. Raises EfedError when one differs."""
    counted = tables.check_counted()
    if counted["equal"] != counted["cases"]:
        raise EfedError("bench-failed", "A count differs from its formula.", "Run pytest tests/bench.")
    return {
        "counted": counted,
        "verdicts": tables.verdicts(),
        "tiling_and_svd": tables.combined(),
        "prefill_saved": {"tokens": list(tables.BATCHES)} | tables.prefill(),
        "decode_saved": {"batches": list(tables.BATCHES)} | tables.predicted(),
    }


def _text(value: dict[str, Any]) -> str:
    """JSON with a line for every innermost list or object."""
    text = json.dumps(value, indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: " ".join(match.group().split()), text) + "\n"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "last_level_cache_bytes": speed.last_level(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
